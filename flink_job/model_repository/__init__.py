"""Model repository."""
