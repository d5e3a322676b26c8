"""Writes stage models and proves that they equal the whole model."""
