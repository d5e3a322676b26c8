"""Runs the job without Kafka and Flink."""
