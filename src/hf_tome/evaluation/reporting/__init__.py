"""Results as tables, plots and model cards."""
