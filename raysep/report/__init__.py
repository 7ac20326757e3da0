"""The answer: summary, figures, tables, HTML."""
