"""Claim checks and memory allocation for large records."""
