"""Peers that are Flink jobs."""
