"""Evaluation tasks of models that predict something for every place."""
