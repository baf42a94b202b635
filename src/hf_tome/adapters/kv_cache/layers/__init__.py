"""A cache's layer: its entries, and how a span of them merges."""
