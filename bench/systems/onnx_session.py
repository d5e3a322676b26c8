"""The session that every peer in Python runs."""

from pathlib import Path

import onnxruntime


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session on one thread, as our own job has them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def has_open_rows(session: onnxruntime.InferenceSession) -> bool:
    """Tell whether rows of the model have many shapes."""
    return any(not isinstance(axis, int) for tensor in session.get_inputs() for axis in tensor.shape[1:])
