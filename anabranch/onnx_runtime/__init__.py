"""ONNX Runtime helpers shared by operators and partition."""
