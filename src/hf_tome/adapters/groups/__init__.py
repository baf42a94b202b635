"""Whole groups of patches, merged in packed towers and kept merged to the language model."""
