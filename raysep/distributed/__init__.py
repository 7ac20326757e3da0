"""Everything that imports Ray: the connection, placement, pools, and a thin shell around each stage's functions."""
