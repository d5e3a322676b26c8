"""Decisions as plain classes: no Flink, ONNX Runtime, Kafka, clock, thread or log.

Time is an argument in Unix milliseconds, and outputs are returned. So Flink and a simulator that crashes and restores
between any two steps run the same code.
"""
