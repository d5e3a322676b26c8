"""Flows of the configuration."""
