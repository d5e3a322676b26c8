"""Profile of a model on this machine: the time of each node on one thread, and the size of each tensor.

Times are minimum thread times. A node's share of a merged kernel follows its unoptimized time. `stage_timing` corrects
stages whose cuts prevent a merge.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx

from anabranch.onnx_runtime.measurement_cache import cached_measurement
from anabranch.partition.errors import UncarriedTensor, WholeModelFailed
from anabranch.partition.graph.model_graph import Graph, indices
from anabranch.partition.profiling.costs import CostGraph, ParameterCost, TensorCost
from anabranch.partition.profiling.inputs import NamedArrays, generate, has_rows
from anabranch.partition.profiling.runtime import RuntimeSession, open_session
from anabranch.partition.profiling.tensor_sizes import observe
from anabranch.partition.stages.writer import sha256_of

#: Of each timed session; slow models exceed it.
_BUDGET_S = 2.0
_FEWEST_RUNS, _MOST_RUNS = 4, 200
#: Rows of runs that show if axis 0 counts rows.
_ROWS = (2, 3)
#: Most time of a copied node, with all that it needs, as a share of the model's.
_MOST_COPIED = 0.02
#: Part of the cache key.
_PROFILE_VERSION = 2
_MARK = "anabranch_node_"
_MARKED = re.compile(rf"{_MARK}(\d+)_")
_KERNEL = "_kernel_time"

#: Takes the finished fraction and the next step.
Progress = Callable[[float, str], None]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Costs of one batch.

    Attributes:
        rows: Size of an open axis 0.
        run_ms: Time of the optimized model.
        node_ms: Time of each node; the sum is `run_ms`.
        tensor_bytes: Sizes of tensors that may cross.
    """

    rows: int
    run_ms: float
    node_ms: tuple[float, ...]
    tensor_bytes: dict[str, int]


def profile(
    graph: Graph, rows: int, progress: Progress | None = None, batch: NamedArrays | None = None, *, again: bool = False
) -> Profile:
    """Return a model's cached profile; measure a missing one.

    Args:
        graph: The model.
        rows: Size of an open axis 0.
        progress: Called before each step.
        batch: None for a random one.
        again: Replaces a cached profile.

    Raises:
        WholeModelFailed: The model does not run.
        UncarriedTensor: The wire cannot carry an input.
    """
    progress = progress or (lambda *_: None)
    shapes = sorted((name, array.shape) for name, array in (batch or {}).items())
    try:
        depends_on = (_PROFILE_VERSION, sha256_of(graph.path), rows, shapes, os.cpu_count())
        with cached_measurement("profiles", depends_on, Profile, os.environ) as cached:
            if cached.measured is None or again:
                cached.measured = _measure(graph, rows, batch, progress)
            return cached.measured
    except (OSError, RuntimeError):  # the cache cannot be written
        return _measure(graph, rows, batch, progress)


def with_copies(graph: Graph, known: Profile) -> Graph:
    """Let stages copy the quick nodes whose tensors may not cross, such as shapes, with the ones that these need."""
    copied = 0
    needs = [0] * len(graph.nodes)
    most_ms = _MOST_COPIED * sum(known.node_ms)
    for index, node in enumerate(graph.nodes):
        needs[index] = 1 << index
        for before in indices(node.predecessors & copied):
            needs[index] |= needs[before]
        if (
            node.gives_the_same
            and any(name not in known.tensor_bytes for name in node.makes)
            and not any(name in graph.outputs for name in node.makes)
            and sum(known.node_ms[each] for each in indices(needs[index])) <= most_ms
        ):
            copied |= 1 << index
    return replace(graph, copied=copied)


def costs_of(graph: Graph, known: Profile) -> CostGraph:
    """Combine graph and profile into costs."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.reads:
            readers.setdefault(name, []).append(index)
    made: list[tuple[str, int | None]] = [(name, None) for name in graph.inputs]
    made += [(name, index) for index, node in enumerate(graph.nodes) for name in node.makes]
    tensors = [
        TensorCost(
            known.tensor_bytes.get(name, 0),
            producer,
            tuple(readers.get(name, ())),
            is_output=name in graph.outputs,
            may_cross=name in known.tensor_bytes,
        )
        for name, producer in made
    ]
    users: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for constant in indices(node.constants):
            users.setdefault(constant, []).append(index)
    parameters = [
        ParameterCost(graph.constants[constant].size_bytes, tuple(nodes))
        for constant, nodes in users.items()
        if graph.constants[constant].size_bytes
    ]
    return CostGraph(known.node_ms, tuple(tensors), tuple(parameters), frozenset(indices(graph.copied)))


def rows_of(graph: Graph, rows: int, batch: NamedArrays | None = None) -> int:
    """Return the rows of the batch, the model's fixed number, or `rows`."""
    if batch is not None and graph.inputs:
        return next(iter(batch[graph.inputs[0]].shape), rows)
    shape = graph.type_of(graph.inputs[0]).shape if graph.inputs else None
    return shape[0] if not has_rows(graph) and shape and isinstance(shape[0], int) else rows


def _measure(graph: Graph, rows: int, batch: NamedArrays | None, progress: Progress) -> Profile:
    progress(0.0, "finding a batch that the model runs on")
    with _marked(graph) as model:
        content = model.SerializeToString()
    batch = _runnable_batch(graph, content, rows, batch)
    progress(0.1, "timing the whole model")
    run_ms = min(_runs_ms(_open(graph, content), batch))
    progress(0.3, "timing nodes, unoptimized")
    alone = _kernels(graph, content, batch, optimized_path=None)
    progress(0.6, "timing kernels, optimized")
    with tempfile.TemporaryDirectory(prefix="anabranch-profile-") as folder:
        path = Path(folder) / "optimized.onnx"
        merged = _kernels(graph, content, batch, optimized_path=path)
        optimized = onnx.load(path, load_external_data=False).graph
    progress(0.9, "measuring tensors")
    sizes = _tensor_bytes(graph, batch, rows)
    for name in _not_by_rows(graph, batch, sizes):
        del sizes[name]
    unmerged = [alone.get(f"{_MARK}{index}_", 0.0) for index in range(len(graph.nodes))]
    shares = _shared_out(graph, unmerged, _owners(graph, optimized.node, merged))
    total = sum(shares)
    node_ms = tuple(share * run_ms / total if total else run_ms / len(shares) for share in shares)
    progress(1.0, "done")
    return Profile(rows=rows, run_ms=run_ms, node_ms=node_ms, tensor_bytes=sizes)


def _runnable_batch(graph: Graph, content: bytes, rows: int, given: NamedArrays | None) -> NamedArrays:
    session = _open(graph, content)
    failure = ""
    for batch in [given] if given is not None else generate(graph, rows):
        try:
            session.run(batch, failure=WholeModelFailed, subject="the whole model")
        except WholeModelFailed as error:
            failure = _MARKED.sub(lambda mark: graph.nodes[int(mark[1])].proto.name, str(error))
        else:
            return batch
    if given is not None:
        raise WholeModelFailed(f"{graph.path} rejects the given inputs: {failure}")
    raise WholeModelFailed(
        f"{graph.path} rejects random inputs: give real ones (`anabranch plan --inputs FILE.npz`): {failure}"
    )


def _open(
    graph: Graph, content: bytes, profile_prefix: Path | None = None, optimized_path: Path | None = None
) -> RuntimeSession:
    return open_session(
        content,
        failure=WholeModelFailed,
        subject="the whole model",
        folder=graph.path.parent,
        optimize=profile_prefix is None or optimized_path is not None,
        threads=1,
        profile_prefix=profile_prefix,
        optimized_path=optimized_path,
    )


def _runs_ms(session: RuntimeSession, batch: NamedArrays) -> Iterator[float]:
    inputs, end_s, count = dict(batch), time.perf_counter() + _BUDGET_S, 0
    while count < _FEWEST_RUNS or (time.perf_counter() < end_s and count < _MOST_RUNS):
        start_s = time.thread_time()
        session.run(inputs, failure=WholeModelFailed, subject="the whole model")
        yield (time.thread_time() - start_s) * 1000
        count += 1


def _kernels(graph: Graph, content: bytes, batch: NamedArrays, *, optimized_path: Path | None) -> dict[str, float]:
    """Measure the minimum time of each kernel."""
    with tempfile.TemporaryDirectory(prefix="anabranch-profile-") as folder:
        session = _open(graph, content, Path(folder) / "runs", optimized_path)
        for _ in _runs_ms(session, batch):
            pass
        events = json.loads(session.end_profiling().read_bytes())
    least: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL)
            least[name] = min(least.get(name, float("inf")), event["dur"] / 1000)
    return least


@contextmanager
def _marked(graph: Graph) -> Iterator[onnx.ModelProto]:
    """Name nodes after their index meanwhile."""
    names = [node.proto.name if node.proto.HasField("name") else None for node in graph.nodes]
    for index, node in enumerate(graph.nodes):
        node.proto.name = f"{_MARK}{index}_"
    try:
        yield graph.model
    finally:
        for node, name in zip(graph.nodes, names, strict=True):
            if name is None:
                node.proto.ClearField("name")
            else:
                node.proto.name = name


def _tensor_bytes(graph: Graph, batch: NamedArrays, rows: int) -> dict[str, int]:
    """Compute tensor sizes by type or by a run."""
    sizes: dict[str, int] = {}
    unknown = []
    for name in (*graph.inputs, *(name for node in graph.nodes for name in node.makes)):
        try:
            size = graph.type_of(name).size_bytes(rows)
        except UncarriedTensor:
            continue
        if size is None:
            unknown.append(name)
        else:
            sizes[name] = size
    if unknown:
        sizes |= {name: observed.size_bytes for name, observed in observe(graph, batch, unknown).items()}
    return sizes


def _not_by_rows(graph: Graph, batch: NamedArrays, tensors: Iterable[str]) -> list[str]:
    """Find tensors whose axis 0 does not count rows, unlike those of all inputs and outputs.

    They may not cross a cut, since batches are split by rows. Two runs tell what an open axis 0 counts.
    """
    types = [graph.type_of(name) for name in (*graph.inputs, *graph.outputs)]
    if not graph.inputs or not all(each.shape for each in types):
        return []
    sizes = {each.shape[0] if each.shape else None for each in types}
    rows_of_runs: Sequence[int] = _ROWS
    if all(not isinstance(size, int) for size in sizes):
        batches = [{name: np.concatenate([array] * rows)[:rows] for name, array in batch.items()} for rows in _ROWS]
    elif len(sizes) == 1:
        rows_of_runs, batches = (len(next(iter(batch.values()))),), [dict(batch)]
    else:
        return []
    other: set[str] = set()
    for rows, each in zip(rows_of_runs, batches, strict=True):
        seen = observe(graph, each, tensors)
        other.update(name for name, tensor in seen.items() if tensor.shape[:1] != (rows,))
    return [name for name in tensors if name in other]


def _owners(graph: Graph, optimized: Sequence[onnx.NodeProto], kernels: Mapping[str, float]) -> dict[int, float]:
    """Sum kernel times by the last node of each kernel.

    A kernel outputs a tensor of that node, or is named after the tensor (layout changes) or the node.
    """
    makers = {name: index for index, node in enumerate(graph.nodes) for name in node.makes}
    outputs = {node.name: node.output for node in optimized}
    owners: dict[int, float] = {}
    for kernel, ms in kernels.items():
        given = [makers[name] for name in outputs.get(kernel, ()) if name in makers]
        named = [int(number) for number in _MARKED.findall(kernel) if int(number) < len(graph.nodes)]
        sources = given or [makers[name] for name in [kernel.removesuffix("_nchwc")] if name in makers] or named
        if sources:
            owners[max(sources)] = owners.get(max(sources), 0.0) + ms
    return owners


def _shared_out(graph: Graph, unmerged: Sequence[float], owners: Mapping[int, float]) -> list[float]:
    """Divide kernel times among nodes; those without a kernel join the next."""
    kernel_of: list[int | None] = [None] * len(graph.nodes)
    after: list[list[int]] = [[] for _ in graph.nodes]
    for index in reversed(range(len(graph.nodes))):
        kernel_of[index] = (
            index if index in owners else next((kernel_of[each] for each in reversed(after[index])), None)
        )
        for before in indices(graph.nodes[index].predecessors):
            after[before].append(index)
    weights: dict[int, float] = {}
    counts: dict[int, int] = {}
    for kernel, ms in zip(kernel_of, unmerged, strict=True):
        if kernel is not None:
            weights[kernel] = weights.get(kernel, 0.0) + ms
            counts[kernel] = counts.get(kernel, 0) + 1
    return [
        0.0 if kernel is None else owners[kernel] * (ms / weights[kernel] if weights[kernel] else 1 / counts[kernel])
        for kernel, ms in zip(kernel_of, unmerged, strict=True)
    ]
