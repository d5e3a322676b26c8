"""Runs models: one protocol, its ONNX Runtime implementation, and a fake for tests."""
