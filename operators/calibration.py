"""Measures what batches of a model cost on this machine, once: the result is kept with the model's hash.

Tasks that start together on one machine would disturb each other's clocks, so one measures and the others read.
"""

import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec

from operators.backends.base import Session, zeros
from operators.core.costs import Measurement
from schemas.model import ModelSpec

#: For one model in all, and for one size of batch.
_BUDGET_S = 1.0
_SIZE_BUDGET_S = 0.1
_MOST_RUNS = 20


def calibrate(session: Session, model: ModelSpec) -> tuple[Measurement, ...]:
    """What batches of a model cost, smallest first; empty for a model that zeros say nothing about.

    A model of which another axis than that of the rows is open has no size of input that would be typical.
    """
    shapes = [spec.shape[1:] if model.batchable else spec.shape for spec in model.inputs]
    if not model.session.calibrate or any(axis is None for shape in shapes for axis in shape):
        return ()
    sizes = _sizes(model)
    try:
        with _kept(model, sizes) as kept:
            if kept.measured is None:
                kept.measured = tuple(_measure(session, model, sizes))
            return kept.measured
    except (OSError, RuntimeError):  # nowhere to keep it: a read-only disk, or a user without a home
        return tuple(_measure(session, model, sizes))


def _sizes(model: ModelSpec) -> list[int]:
    if not model.batchable:
        return [1]
    if model.fixed_rows:
        return [model.fixed_rows]
    most = max(model.batching.max_rows, model.batching.shard_rows)
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def _measure(session: Session, model: ModelSpec, sizes: Sequence[int]) -> Iterator[Measurement]:
    outputs = [output.name for output in model.outputs]
    end_s = time.perf_counter() + _BUDGET_S
    for rows in sizes:
        inputs = zeros(model, rows)
        times_s: list[float] = []
        try:
            while len(times_s) < 2 or (sum(times_s) < _SIZE_BUDGET_S and len(times_s) < _MOST_RUNS):
                start_s = time.perf_counter()
                session.run(outputs, inputs)
                times_s.append(time.perf_counter() - start_s)
        except Exception:  # noqa: BLE001 - zeros may be no valid input for this model
            return
        yield Measurement(rows, min(times_s) * 1000)
        if time.perf_counter() > end_s:
            return


class _Kept(msgspec.Struct):
    """What is known, and what is to be kept."""

    measured: tuple[Measurement, ...] | None = None


@contextmanager
def _kept(model: ModelSpec, sizes: Sequence[int]) -> Iterator[_Kept]:
    """Reads what was kept; keeps what is there at the end. Whoever else asks for the same waits meanwhile."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anabranch" / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{_key(model, sizes)}.json").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            kept = msgspec.json.decode(file.read(), type=_Kept)
        except msgspec.DecodeError:
            kept = _Kept()
        was_known = kept.measured is not None
        yield kept
        if not was_known:
            file.truncate(0)
            file.write(msgspec.json.encode(kept))


def _key(model: ModelSpec, sizes: Sequence[int]) -> str:
    """Of all that the figures depend on."""
    known = (
        model.sha256,
        msgspec.json.encode(model.session).decode(),
        list(sizes),
        version("onnxruntime"),
        platform.machine(),
        _processor(),
        os.cpu_count(),
    )
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.processor())
