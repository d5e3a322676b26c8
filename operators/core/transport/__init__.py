"""Claim checks, and memory for them."""
