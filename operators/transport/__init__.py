"""Moves large records and frames through shared memory."""
