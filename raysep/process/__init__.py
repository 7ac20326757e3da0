"""This process: environment, signals, captured stderr, and a watcher that reports crashes."""
