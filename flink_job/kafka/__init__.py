"""Kafka connections."""
