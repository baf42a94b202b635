"""Where merging fits in a model that somebody else wrote."""
