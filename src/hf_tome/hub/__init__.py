"""Saving, loading, model cards and export."""
