"""Operators of the Flink job."""
