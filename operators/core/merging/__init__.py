"""Splits large requests into shards and merges their outputs into one answer."""
