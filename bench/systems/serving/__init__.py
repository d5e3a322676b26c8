"""Peers that are model servers behind a Kafka bridge."""
