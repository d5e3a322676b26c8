"""Decisions as plain classes: no Flink, ONNX Runtime, Kafka, clock, thread or log.

Time is an argument in Unix milliseconds, so Flink and a simulator run the same code.
"""
