"""Sessions of models."""
