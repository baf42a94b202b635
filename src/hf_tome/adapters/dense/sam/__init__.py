"""Towers of SAM's kind, most of whose blocks attend in windows cut from the full grid of tokens."""
