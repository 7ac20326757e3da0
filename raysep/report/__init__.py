"""The report of a run: summary, figures, tables, HTML."""
