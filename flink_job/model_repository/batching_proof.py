"""Decides whether a model's requests share batches, by a trial of the model that is cached with its verdict."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np

from anabranch.flink_job.errors import ConfigError
from anabranch.onnx_runtime.batching_trial import NoTrial, TrialLimits, try_batches
from anabranch.onnx_runtime.measurement_cache import cached_measurement
from anabranch.onnx_runtime.trial_inputs import Axes, RowPool, TrialInput, generated_pools, sampled_pool
from anabranch.operators.backends.base import ModelLoadFailed, Session
from anabranch.operators.backends.onnx import OnnxBackend, sha256_of
from anabranch.operators.core.scheduling.batch_cost_model import DEFAULT_ROWS
from anabranch.schemas.model import BatchingVerdict, ModelSpec, TensorSpec
from anabranch.schemas.tensors import BYTES, NUMPY_DTYPES, Array

SAMPLE = "sample.npz"
#: Reason of a verdict without a trial.
TRUSTED = "not tried: trust = true under [batching]"
_LOGGER = logging.getLogger("anabranch.models")
#: Time of a trial, and how far a busy machine may stretch it.
_BUDGET_S, _BUSIEST = 0.7, 8.0
_MOST_RUN_MS = 30_000
#: Changes with the trial.
_EDITION = 3
#: Names that exporters invent, or that all mean the rows.
_INVENTED = re.compile(r"|\?|unk_.*|unknown.*|.*_dynamic_axes_\d+|.*_dim_\d+|.*__d\d+|DynamicDimension\..*|-1|None")
_MEANS_ROWS = re.compile(r"n|b|bs|rows?|.*batch.*", re.IGNORECASE)


def prove_batching(model: ModelSpec, repository_path: Path) -> ModelSpec:
    """Return a model whose axis 0 may count rows, with its verdict.

    Args:
        repository_path: The model's file in the repository, beside which a sample may be.

    Raises:
        ConfigError: The sample does not fit the model.
    """
    verdict = _without_trial(model) or _cached(model, repository_path)
    batching = model.batching
    is_capped = 0 < verdict.most_rows < (batching.max_rows or DEFAULT_ROWS)
    if is_capped:
        batching = msgspec.structs.replace(batching, max_rows=verdict.most_rows)
    return replace(
        model,
        batchable=verdict.level != "whole",
        verdict=verdict,
        batching=batching,
        is_capped=is_capped,
        padding=model.padding if verdict.pads else None,
    )


def _whole(reason: str) -> BatchingVerdict:
    return BatchingVerdict(level="whole", reason=reason)


def _without_trial(model: ModelSpec) -> BatchingVerdict | None:
    if model.fixed_rows and model.inputs and model.batching.enabled is not False:
        reason = f"a run takes {model.fixed_rows} rows, all of one request"
        return BatchingVerdict(level="within request", reason=reason)
    obstacle = _obstacle(model)
    if obstacle:
        return _whole(obstacle)
    if not model.batching.trust:
        return None
    return BatchingVerdict(reason=TRUSTED, pads=model.padding is not None)


def _obstacle(model: ModelSpec) -> str | None:
    if model.batching.enabled is False:
        return "enabled = false under [batching]"
    if not model.inputs:
        return "the model has no inputs"
    for spec in model.inputs:
        if not spec.shape:
            return f"input {spec.name!r} has {'no known shape' if spec.any_rank else 'no axis 0'}"
    for spec in model.inputs + model.outputs:
        if spec.shape and spec.shape[0] is not None:
            return f"axis 0 of {spec.name!r} has a fixed size of {spec.shape[0]}"
    return None


def _cached(model: ModelSpec, repository_path: Path) -> BatchingVerdict:
    sample = next(filter(Path.is_file, (repository_path.parent / SAMPLE, repository_path.parent.parent / SAMPLE)), None)
    files = sorted(path for path in repository_path.parent.iterdir() if ".data" in path.name)
    key = (
        _EDITION,
        model.sha256,
        [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files],
        msgspec.json.encode(model.session).decode(),
        (model.batching.enabled, model.batching.tolerance, model.batching.max_rows),
        sha256_of(sample) if sample else "",
        model.padding,
    )
    try:
        with cached_measurement("batching", key, BatchingVerdict, os.environ) as cached:
            if cached.measured is None:
                cached.measured = _tried(model, sample)
            return cached.measured
    except (OSError, RuntimeError):  # the cache cannot be written
        return _tried(model, sample)


def _tried(model: ModelSpec, sample: Path | None) -> BatchingVerdict:
    # Only a trial needs ONNX.
    from anabranch.partition.errors import PartitionError  # noqa: PLC0415
    from anabranch.partition.graph.input_ranges import input_ranges  # noqa: PLC0415
    from anabranch.partition.graph.model_file import read_model  # noqa: PLC0415
    from anabranch.partition.graph.tensor_types import tensor_type  # noqa: PLC0415

    started_s = time.monotonic()
    outputs = [spec.name for spec in model.outputs]
    try:
        graph = read_model(Path(model.path))
        axes = {value.name: tensor_type(value.name, value.type).shape or () for value in graph.graph.input}
        made = {value.name: tensor_type(value.name, value.type).shape or () for value in graph.graph.output}
        conflict = None if model.batching.enabled else _conflict(axes, made, model)
        if conflict:
            return _whole(f"{conflict}: if they are the same, set enabled = true under [batching]")
        ranges = input_ranges(graph)
        inputs = []
        for spec in model.inputs:
            known = ranges.get(spec.name)
            is_mask = "mask" in spec.name.lower() and spec.datatype[:2] != "FP" and len(spec.shape) > 1
            kind: Any = "mask" if is_mask else "length" if known and known.is_length else "values"
            inputs.append(
                TrialInput(spec.name, spec.datatype, axes[spec.name], end=known.end if known else None, kind=kind)
            )
        del graph
        pools: Iterable[RowPool] = generated_pools(inputs)
        if sample:
            pools = [sampled_pool(_read_sample(sample, model.inputs), str(sample))]
        session = _load(model)
        limits = TrialLimits(model.batching.tolerance, model.batching.max_rows or DEFAULT_ROWS, _BUDGET_S, _clock())
        verdict = try_batches(lambda rows: session.run(outputs, rows), outputs, pools, limits, model.padding)
    except (NoTrial, ModelLoadFailed, PartitionError) as error:
        advice = f"put rows that it takes into {SAMPLE} beside it, or set trust = true under [batching]"
        verdict = _whole(f"not tried: {error}; {advice}")
    level = logging.INFO if verdict.level == "strangers" else logging.WARNING
    spent_s = time.monotonic() - started_s
    _LOGGER.log(level, "%s/%s: %s: %s (%.2f s)", model.name, model.version, verdict.level, verdict.reason, spent_s)
    return verdict


def _clock() -> Callable[[], float]:
    """Return a clock of this process's work, which a busy machine does not hasten much."""
    work_s, wall_s = time.process_time(), time.monotonic()
    return lambda: max(time.process_time() - work_s, (time.monotonic() - wall_s) / _BUSIEST)


def _load(model: ModelSpec) -> Session:
    limited = msgspec.structs.replace(model.session, max_run_ms=_MOST_RUN_MS)
    try:
        return OnnxBackend().load(replace(model, session=limited))
    except ModelLoadFailed:
        # This machine may lack the providers of the cluster's.
        on_cpu = msgspec.structs.replace(limited, providers=("CPUExecutionProvider",))
        return OnnxBackend().load(replace(model, session=on_cpu))


def _conflict(inputs: Mapping[str, Axes], outputs: Mapping[str, Axes], model: ModelSpec) -> str | None:
    """Find two names of axis 0 that differ."""
    sides = [(spec.name, inputs[spec.name]) for spec in model.inputs] + list(outputs.items())
    first: tuple[str, str] | None = None
    for name, axes in sides:
        axis = str(axes[0]) if axes else ""
        if _INVENTED.fullmatch(axis):
            continue
        if first is None and name in inputs:
            first = name, axis
        elif first and axis != first[1] and not (_MEANS_ROWS.fullmatch(axis) and _MEANS_ROWS.fullmatch(first[1])):
            return f"axis 0 is {first[1]!r} in {first[0]!r}, and {axis!r} in {name!r}"
    return None


def _read_sample(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, AttributeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; save it by numpy.savez") from None
    sample = {}
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None:
            raise ConfigError(f"{path} lacks input {spec.name!r}, found {', '.join(arrays) or 'nothing'}: add it")
        if spec.datatype == BYTES and array.dtype.kind in "US":
            text = np.empty(array.shape, dtype=object)
            text.ravel()[:] = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
            array = text
        if spec.datatype != BYTES and array.dtype != NUMPY_DTYPES[spec.datatype]:
            raise ConfigError(f"{path}: {spec.name!r} is {array.dtype}, expected {spec.datatype}: convert it")
        if array.ndim != len(spec.shape) or not array.shape[0]:
            raise ConfigError(
                f"{path}: {spec.name!r} has shape {list(array.shape)}, expected {len(spec.shape)} axes with 1 or more "
                "rows: correct it"
            )
        sample[spec.name] = array
    return sample
