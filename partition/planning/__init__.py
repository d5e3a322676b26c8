"""Chooses cuts, replicas and machines."""
