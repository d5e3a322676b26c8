"""Registries of the schemas of events."""
