"""ONNX graphs: files, nodes, tensor types and external data."""
