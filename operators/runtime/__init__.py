"""Adapters between Flink and the core."""
