"""Business events in, the same events with predictions out."""
