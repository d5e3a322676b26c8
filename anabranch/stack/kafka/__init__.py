"""Kafka of the local stack, and topics of any cluster."""
