"""The demo on handwriting: data, models and tables."""
