"""Cuts an ONNX model into stages, and proves that they equal it."""
