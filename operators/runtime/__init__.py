"""Adapters to Flink: types, side outputs, metrics, task context and the task lock."""
