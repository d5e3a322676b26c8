"""Cutting of ONNX models into stages."""
