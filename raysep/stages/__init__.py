"""The stages of a run, what is pending in each, and the run directory that they share."""
