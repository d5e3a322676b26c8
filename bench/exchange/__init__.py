"""Flink's exchange alone: one task that writes, one that reads, each on a TaskManager of its own."""
