"""Sending half and receiving half of a client."""
