"""Saved state of the job."""
