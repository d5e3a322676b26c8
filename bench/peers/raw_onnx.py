"""The limit: ONNX Runtime on one thread, without Kafka, decoding or anything else."""

from pathlib import Path
from time import perf_counter

import numpy as np

from bench.peers.session import open_session
from schemas.tensors import Array


def rows_per_s(model: Path, row: Array, batch_rows: int, seconds: float) -> float:
    """Rows a second through one session, in batches of this size."""
    session = open_session(model)
    name = session.get_inputs()[0].name
    batch = np.repeat(row, batch_rows, axis=0)
    session.run(None, {name: batch})
    runs = 0
    start_s = perf_counter()
    while (spent_s := perf_counter() - start_s) < seconds:
        session.run(None, {name: batch})
        runs += 1
    return runs * batch_rows / spent_s
