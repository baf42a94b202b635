"""The rows of the supported families, by kind."""
