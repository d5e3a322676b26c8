"""Formats of events: JSON, Avro and Protobuf, with or without a registry."""
