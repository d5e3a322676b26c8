"""Cuts an ONNX model into stages: knows its graph and its legal cuts, writes stage models, proves them equal to it."""
