"""Reading data sets: splits, media, labels, shards."""
