"""The operating system process: environment, signals, captured stderr, and the watcher that reports a crash."""
