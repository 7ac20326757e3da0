"""The stages of a run, the pending work of each, and the run directory that they share."""
