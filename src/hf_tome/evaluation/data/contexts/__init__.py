"""Texts that a language model continues, and what is hidden in them."""
