"""Many runs from one file: the cells of a matrix, round after round, with a history, a leaderboard and a gate."""
