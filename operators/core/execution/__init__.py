"""Runs batches, stages and steps, and moves batches between tasks."""
