"""Shortened prompts: image tokens removed before the language model, and the caches built on them."""
