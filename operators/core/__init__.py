"""Decisions, as plain classes. No Flink, ONNX Runtime, Kafka, clock, thread or log may be imported here.

Time is an argument, in Unix milliseconds; what to emit is returned, never sent; so the same code runs under Flink,
under Hypothesis and in a simulator that crashes and restores it between any two steps.
"""
