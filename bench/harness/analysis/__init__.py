"""Figures computed from recorded runs."""
