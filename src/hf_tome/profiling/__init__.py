"""Timing, memory, and the slice oracle."""
