"""Stages: writing and proof."""
