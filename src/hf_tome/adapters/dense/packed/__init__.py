"""Towers that pack the tokens of all images into one sequence, and tell them apart by cumulative lengths."""
