"""ONNX Runtime for operators and partition."""
