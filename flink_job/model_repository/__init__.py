"""Reads the model repository into a catalog."""
