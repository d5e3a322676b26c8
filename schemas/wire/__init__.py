"""Encodings of requests, answers and dead letters in Kafka."""
