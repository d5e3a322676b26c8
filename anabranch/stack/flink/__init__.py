"""Flink of the local stack."""
