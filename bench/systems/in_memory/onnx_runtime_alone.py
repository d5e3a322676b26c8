"""The limit: ONNX Runtime on one thread, without Kafka, decoding or anything else."""

from pathlib import Path
from time import perf_counter

import numpy as np

from anabranch.schemas.tensors import Array
from anabranch.schemas.wire import codec
from bench.systems.onnx_session import open_session
from bench.workloads.workload import Workload

_MODEL_SECONDS = 1.0


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


def workload_rows_per_s(workload: Workload, repository: Path, batch_rows: int, seconds: float) -> float:
    """Return the same with a workload's model, and a row of its first request."""
    request = codec.decode_request(workload.message(0))
    model = next((repository / request.model_name).glob("*/model.onnx"))
    return rows_per_s(model, request.inputs[0].to_array()[:1], batch_rows, seconds)


def requests_per_s(workload: Workload, repository: Path) -> float:
    """Return the rate at which one session answers each distinct request of a workload once, alone."""
    requests = [codec.decode_request(workload.message(number)) for number in range(len(workload.requests))]
    session = open_session(next((repository / requests[0].model_name).glob("*/model.onnx")))
    feeds = [{tensor.name: tensor.to_array() for tensor in request.inputs} for request in requests]
    session.run(None, feeds[0])
    start_s = perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return len(feeds) / (perf_counter() - start_s)


def model_ms(workload: Workload, repository: Path) -> float:
    """Milliseconds of a workload's model for one request."""
    return workload.rows * 1000 / workload_rows_per_s(workload, repository, workload.rows, _MODEL_SECONDS)
