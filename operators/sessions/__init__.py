"""Loads, calibrates and shares model sessions."""
