"""Measures what a model costs on this machine: each node's time on one thread, and each tensor's size.

What a node takes is not one figure. Unoptimized, ONNX Runtime runs and times every node; optimized, as stages run, it
merges many into one kernel, drops others, and turns tensors into layouts of its own between them. So:

    exact       the time of the whole model, fully optimized: `node_ms` adds up to it; every tensor's size
    measured    the time of each kernel of the optimized model, by ONNX Runtime's profiler
    estimated   who takes what part of a kernel that several nodes became: in proportion to what they take unoptimized;
                and changes of layout, and the time between kernels: in proportion to all of it

Cutting a model changes what can be merged at the cut, which no profile of the whole can know. Every time is the least
of several runs, and the whole model's is that of its thread alone: what else the machine does only ever adds to it.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from anabranch.onnx_runtime.measurement_cache import kept
from anabranch.partition.errors import UncarriedTensor, WholeModelFailed
from anabranch.partition.graph.model_graph import Graph, indices
from anabranch.partition.profiling.costs import CostGraph, ParameterCost, TensorCost
from anabranch.partition.profiling.inputs import Batch, generate, has_rows
from anabranch.partition.profiling.runtime import first_line
from anabranch.partition.profiling.tensor_sizes import observe
from anabranch.partition.stages.writer import sha256_of

#: For each of the three sessions that are timed; a slow model runs `_FEWEST_RUNS` times all the same.
_BUDGET_S = 2.0
_FEWEST_RUNS, _MOST_RUNS = 4, 200
#: Of the two runs that tell whether a tensor's axis 0 counts rows.
_ROWS = (2, 3)
#: Part of the name under which profiles are kept: what they say has another meaning since.
_MEANING = 2
_MARK = "anabranch_node_"
_MARKED = re.compile(rf"{_MARK}(\d+)_")
_KERNEL = "_kernel_time"

#: Told how much of the work is done, from 0 to 1, and what comes next.
Progress = Callable[[float, str], None]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch of so many rows costs.

    Attributes:
        rows: Size of axis 0, where it is open.
        run_ms: Of the whole model, fully optimized, on one thread.
        node_ms: Of each of the graph's nodes; `run_ms` in all.
        tensor_bytes: Of every tensor that a node makes or the model takes, if it may cross a cut: the wire can carry
            it, and where axis 0 of all inputs and outputs counts rows, so does its own.
    """

    rows: int
    run_ms: float
    node_ms: tuple[float, ...]
    tensor_bytes: dict[str, int]


def profile(
    graph: Graph, rows: int, progress: Progress | None = None, batch: Batch | None = None, *, again: bool = False
) -> Profile:
    """What is known of a model on this machine; what is not is measured, and kept.

    Args:
        graph: The model.
        rows: Size of axis 0, where it is open.
        progress: Told how far it is.
        batch: What to run it on, of so many rows; without, a random batch on which it runs.
        again: Whether to measure although it is known: something else may have kept the machine busy.

    Raises:
        WholeModelFailed: The model does not run on any batch that was tried.
        UncarriedTensor: An input of the model is no tensor that the wire carries.
    """
    progress = progress or (lambda *_: None)
    shapes = sorted((name, array.shape) for name, array in (batch or {}).items())
    try:
        depends_on = (_MEANING, sha256_of(graph.path), rows, shapes, os.cpu_count())
        with kept("profiles", depends_on, Profile, os.environ) as known:
            if known.measured is None or again:
                known.measured = _measure(graph, rows, batch, progress)
            return known.measured
    except (OSError, RuntimeError):  # nowhere to keep it
        return _measure(graph, rows, batch, progress)


def costs_of(graph: Graph, known: Profile) -> CostGraph:
    """A model as the planner sees it."""
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
    return CostGraph(known.node_ms, tuple(tensors), tuple(parameters))


def rows_of(graph: Graph, rows: int, batch: Batch | None = None) -> int:
    """How many rows a batch has that was to have `rows`: its own number, or the model's, where it is fixed."""
    if batch is not None and graph.inputs:
        return next(iter(batch[graph.inputs[0]].shape), rows)
    shape = graph.type_of(graph.inputs[0]).shape if graph.inputs else None
    return shape[0] if not has_rows(graph) and shape and isinstance(shape[0], int) else rows


# ---- measuring -----------------------------------------------------------------------------------------------------


def _measure(graph: Graph, rows: int, batch: Batch | None, progress: Progress) -> Profile:
    progress(0.0, "looking for a batch that it runs on")
    with _marked(graph) as model:
        content = model.SerializeToString()
    batch = _batch(graph, content, rows, batch)
    progress(0.1, "timing the whole model")
    run_ms = min(_runs(_session(content, graph.path.parent), batch))
    progress(0.3, "timing its nodes, unoptimized")
    alone = _kernels(content, graph.path.parent, batch, optimized=None)
    progress(0.6, "timing its kernels, optimized")
    with tempfile.TemporaryDirectory(prefix="anabranch-profile-") as folder:
        path = Path(folder) / "optimized.onnx"
        merged = _kernels(content, graph.path.parent, batch, optimized=path)
        optimized = onnx.load(path, load_external_data=False).graph
    progress(0.9, "weighing its tensors")
    sizes = _tensor_bytes(graph, batch, rows)
    for name in _not_by_rows(graph, batch, sizes):
        del sizes[name]
    unmerged = [alone.get(f"{_MARK}{index}_", 0.0) for index in range(len(graph.nodes))]
    shares = _shared_out(graph, unmerged, _owners(graph, optimized.node, merged))
    total = sum(shares)
    node_ms = tuple(share * run_ms / total if total else run_ms / len(shares) for share in shares)
    progress(1.0, "done")
    return Profile(rows=rows, run_ms=run_ms, node_ms=node_ms, tensor_bytes=sizes)


def _batch(graph: Graph, content: bytes, rows: int, given: Batch | None) -> Batch:
    """The first batch that the model runs on."""
    session = _session(content, graph.path.parent)
    failure = ""
    for batch in [given] if given is not None else generate(graph, rows):
        try:
            session.run(None, dict(batch))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for every cause, and none for all
            failure = _MARKED.sub(lambda mark: graph.nodes[int(mark[1])].proto.name, first_line(error))
        else:
            return batch
    if given is not None:
        raise WholeModelFailed(f"{graph.path} does not run on the inputs that were given: {failure}")
    raise WholeModelFailed(
        f"no random inputs suit {graph.path}, so give real ones (`anabranch plan --inputs FILE.npz`): {failure}"
    )


def _runs(session: Any, batch: Batch) -> Iterator[float]:
    """How long each of several runs computed, ms: one thread does it all, and waits for no one but other programs."""
    fed, end_s, count = dict(batch), time.perf_counter() + _BUDGET_S, 0
    while count < _FEWEST_RUNS or (time.perf_counter() < end_s and count < _MOST_RUNS):
        start_s = time.thread_time()
        session.run(None, fed)
        yield (time.thread_time() - start_s) * 1000
        count += 1


def _kernels(content: bytes, folder: Path, batch: Batch, *, optimized: Path | None) -> dict[str, float]:
    """The least that each kernel took, by its name; 0.001 ms is the clock's step.

    Args:
        optimized: Where to leave the optimized model; None to run it as it is.
    """
    with tempfile.TemporaryDirectory(prefix="anabranch-profile-") as temporary:

        def set_up(options: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = f"{temporary}/runs"
            if optimized is None:
                options.graph_optimization_level = _runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
            else:
                options.optimized_model_filepath = str(optimized)
                # Weights need not be read again.
                name = "session.optimized_model_external_initializers_"
                options.add_session_config_entry(f"{name}file_name", f"{optimized.name}.data")
                options.add_session_config_entry(f"{name}min_size_in_bytes", "1024")

        session = _session(content, folder, set_up)
        for _ in _runs(session, batch):
            pass
        events = json.loads(Path(session.end_profiling()).read_bytes())
    least: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL)
            least[name] = min(least.get(name, float("inf")), event["dur"] / 1000)
    return least


def _session(content: bytes, folder: Path, set_up: Callable[[Any], None] | None = None) -> Any:
    options = _runtime().SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if set_up is not None:
        set_up(options)
    try:
        return _runtime().InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - as above
        raise WholeModelFailed(f"the whole model does not load: {first_line(error)}") from None


def _runtime() -> Any:
    # Importing it takes a while and starts threads.
    import onnxruntime  # noqa: PLC0415

    return onnxruntime


@contextmanager
def _marked(graph: Graph) -> Iterator[onnx.ModelProto]:
    """The model, whose nodes' names say meanwhile which of the graph's they are."""
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


def _tensor_bytes(graph: Graph, batch: Batch, rows: int) -> dict[str, int]:
    """The size of every tensor that can be carried; those whose shape says too little are looked at in a run."""
    sizes: dict[str, int] = {}
    untold = []
    for name in (*graph.inputs, *(name for node in graph.nodes for name in node.makes)):
        try:
            size = graph.type_of(name).size_bytes(rows)
        except UncarriedTensor:
            continue
        if size is None:
            untold.append(name)
        else:
            sizes[name] = size
    if untold:
        sizes |= {name: seen.size_bytes for name, seen in observe(graph, batch, untold).items()}
    return sizes


def _not_by_rows(graph: Graph, batch: Batch, tensors: Iterable[str]) -> list[str]:
    """Tensors whose axis 0 does not count rows, of a model that has rows: its requests share batches, and are split.

    A shape that says so proves nothing: an axis of any size may be rows times words. So they are looked at in two runs.
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
    odd: set[str] = set()
    for rows, each in zip(rows_of_runs, batches, strict=True):
        seen = observe(graph, each, tensors)
        odd.update(name for name, tensor in seen.items() if tensor.shape[:1] != (rows,))
    return [name for name in tensors if name in odd]


# ---- whose time is whose -------------------------------------------------------------------------------------------


def _owners(graph: Graph, optimized: Sequence[onnx.NodeProto], kernels: Mapping[str, float]) -> dict[int, float]:
    """The time of each kernel, by the last of the nodes that became it; of kernels that were none, nothing.

    A kernel gives a tensor of the last node, or is named after that tensor (layouts of its own), or after a node.
    """
    makers = {name: index for index, node in enumerate(graph.nodes) for name in node.makes}
    outputs = {node.name: node.output for node in optimized}
    owners: dict[int, float] = {}
    for kernel, ms in kernels.items():
        given = [makers[name] for name in outputs.get(kernel, ()) if name in makers]
        named = [int(number) for number in _MARKED.findall(kernel) if int(number) < len(graph.nodes)]
        told = given or [makers[name] for name in [kernel.removesuffix("_nchwc")] if name in makers] or named
        if told:
            owners[max(told)] = owners.get(max(told), 0.0) + ms
    return owners


def _shared_out(graph: Graph, unmerged: Sequence[float], owners: Mapping[int, float]) -> list[float]:
    """Every node's part: a node that has no kernel of its own went into the first one after it."""
    kernel_of: list[int | None] = [None] * len(graph.nodes)
    after: list[list[int]] = [[] for _ in graph.nodes]
    for index in reversed(range(len(graph.nodes))):
        kernel_of[index] = (
            index if index in owners else next((kernel_of[each] for each in reversed(after[index])), None)
        )
        for before in indices(graph.nodes[index].predecessors):
            after[before].append(index)
    weights: dict[int, float] = {}
    members: dict[int, int] = {}
    for kernel, ms in zip(kernel_of, unmerged, strict=True):
        if kernel is not None:
            weights[kernel] = weights.get(kernel, 0.0) + ms
            members[kernel] = members.get(kernel, 0) + 1
    return [
        0.0 if kernel is None else owners[kernel] * (ms / weights[kernel] if weights[kernel] else 1 / members[kernel])
        for kernel, ms in zip(kernel_of, unmerged, strict=True)
    ]
