"""Peers that consume from Kafka and run the model in the same process."""
