"""Lays out and draws plans."""
