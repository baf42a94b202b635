"""Tasks with one label, or several, a sample."""
