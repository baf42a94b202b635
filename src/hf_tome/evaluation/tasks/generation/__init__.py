"""Tasks whose model writes text about an image."""
