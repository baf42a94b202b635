"""Accuracy and speed of a model under several merge configs, on real data."""
