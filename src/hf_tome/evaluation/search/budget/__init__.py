"""Tuning to a budget of compute or time."""
