"""Measures a model's nodes, tensors and stages."""
