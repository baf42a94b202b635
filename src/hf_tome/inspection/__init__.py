"""What merging does to a model: reports, traces, GFLOPs."""
