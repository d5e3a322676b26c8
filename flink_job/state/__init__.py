"""Saved state."""
