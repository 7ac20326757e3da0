"""The Ray layer: connection, placement, actor pools, and a thin wrapper around the functions of each stage."""
