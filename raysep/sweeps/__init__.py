"""Sweeps: repeated rounds of runs over a matrix, with a results table, a leaderboard and a regression gate."""
