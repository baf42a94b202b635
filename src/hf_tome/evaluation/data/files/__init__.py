"""Data sets as files: class folders, metadata, shards, tables and texts."""
