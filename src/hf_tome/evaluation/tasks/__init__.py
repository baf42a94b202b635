"""Evaluation tasks, one file and one row each."""
