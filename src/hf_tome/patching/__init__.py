"""Changing the class of a module instance, and back; knows no model."""
