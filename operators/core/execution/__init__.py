"""Runs batches, stages and steps; moves batches between tasks."""
