"""What runs a model: one protocol, ONNX Runtime behind it, and a fake for tests."""
