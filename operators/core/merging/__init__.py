"""Shards of large requests, and the merging of their outputs."""
