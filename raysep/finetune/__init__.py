"""Training on the seen classes: one trial, and Ray Tune around many."""
