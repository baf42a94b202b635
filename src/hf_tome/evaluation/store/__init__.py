"""Results of a run on disk: records, resuming, fingerprints."""
