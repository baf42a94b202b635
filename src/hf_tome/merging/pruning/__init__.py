"""Methods that drop tokens instead of merging them."""
