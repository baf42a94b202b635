"""MaMe: matrix-based merging, dense, sparse and by tiles."""
