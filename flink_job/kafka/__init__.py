"""Kafka connections of the job."""
