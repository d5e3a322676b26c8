"""Batch times of models on this machine, cached by the model's hash."""

import os
import time
from collections.abc import Iterator, Sequence

import msgspec

from anabranch.onnx_runtime.measurement_cache import cached_measurement
from anabranch.operators.backends.base import Session, zeros
from anabranch.operators.core.scheduling.batch_cost_model import DEFAULT_ROWS, MOST_MS, MOST_ROWS, Measurement
from anabranch.schemas.model import ModelSpec

#: For one model, and for one batch size.
_BUDGET_S = 1.0
_SIZE_BUDGET_S = 0.1
_MOST_RUNS = 20


def calibrate(session: Session, model: ModelSpec) -> tuple[Measurement, ...]:
    """Measure batches of zeros, smallest first.

    Returns:
        One measurement for each batch size; none for a model that rejects zeros, or that has other open axes.
    """
    shapes = [spec.shape[1:] if model.batchable else spec.shape for spec in model.inputs]
    if not model.session.calibrate or any(axis is None for shape in shapes for axis in shape):
        return ()
    sizes = _sizes(model)
    try:
        with cached_measurement(
            "calibration", _depends_on(model, sizes), tuple[Measurement, ...], os.environ
        ) as cached:
            if cached.measured is None:
                cached.measured = tuple(_measure(session, model, sizes))
            return cached.measured
    except (OSError, RuntimeError):  # the cache cannot be written
        return tuple(_measure(session, model, sizes))


def _depends_on(model: ModelSpec, sizes: Sequence[int]) -> tuple[object, ...]:
    return model.sha256, msgspec.json.encode(model.session).decode(), list(sizes), os.cpu_count()


def _sizes(model: ModelSpec) -> list[int]:
    if not model.batchable:
        return [1]
    if model.fixed_rows:
        return [model.fixed_rows]
    most = max(model.batching.max_rows or MOST_ROWS, model.batching.shard_rows)
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def _measure(session: Session, model: ModelSpec, sizes: Sequence[int]) -> Iterator[Measurement]:
    outputs = [output.name for output in model.outputs]
    end_s = time.perf_counter() + _BUDGET_S
    enough_rows = max(model.batching.max_rows or DEFAULT_ROWS, model.batching.shard_rows)
    for rows in sizes:
        inputs = zeros(model, rows)
        times_s: list[float] = []
        try:
            while len(times_s) < 2 or (sum(times_s) < _SIZE_BUDGET_S and len(times_s) < _MOST_RUNS):
                start_s = time.perf_counter()
                session.run(outputs, inputs)
                times_s.append(time.perf_counter() - start_s)
        except Exception:  # noqa: BLE001 - some models reject zeros
            return
        yield Measurement(rows, min(times_s) * 1000)
        is_enough = rows >= enough_rows and min(times_s) * 1000 > MOST_MS
        if is_enough or time.perf_counter() > end_s:
            return
