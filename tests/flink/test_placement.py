"""On a standalone cluster, each stage has its own TaskManager, which holds only its weights."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import numpy_helper

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.flink.task_placement import Worker, workers
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import FIRST_PROCESS
from tests.flink.models import FLOAT, INT64, Tensors, _write, write_plan
from tests.flink.service import Topics

ROWS = 4096
#: One slot for `serve`, and one for each stage.
TASK_MANAGERS = 3
RANDOM = np.random.default_rng(17)
#: Weights of a whole model and of two stages of another: random, 1 MB each.
TABLES = {name: RANDOM.standard_normal((ROWS, 64), dtype=np.float32) for name in ("whole", "stage 1/2", "stage 2/2")}


def write_models(folder: Path) -> None:
    """`plain`: y = whole[i]; `tables`: i -> [ 1: h = first[i] ] -> [ 2: y = h + second[i] ] -> y."""
    whole, first, second = (numpy_helper.from_array(table, "table") for table in TABLES.values())
    i: Tensors = {"i": (INT64, ["n"])}
    h: Tensors = {"h": (FLOAT, ["n", 64])}
    y: Tensors = {"y": (FLOAT, ["n", 64])}
    _write(folder / "plain" / "1", ["Gather table i y"], i, y, [whole])
    version = folder / "tables" / "1"
    other = numpy_helper.from_array(TABLES["stage 2/2"], "other")
    _write(version, ["Gather table i h", "Gather other i g", "Add h g y"], i, y, [first, other])
    _write(version, ["Gather table i h"], i, h, [first], file="stage-0.onnx")
    _write(version, ["Gather table i g", "Add h g y"], h | i, y, [second], file="stage-1.onnx")
    write_plan(version, [(["i"], ["h"], 1), (["h", "i"], ["y"], 1)])
    (folder / "tables" / "model.toml").write_text('stages = "plan.json"\n')


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", FIRST_PROCESS)
def test_stages_have_their_own_processes_and_weights(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    write_models(tmp_path / "models")
    config = Config().replace(
        job={"name": f"placed-{mode}", "execution_mode": mode, "parallelism": 1},
        models={"repository": str(tmp_path / "models")},
    )
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "cluster", task_managers=TASK_MANAGERS) as cluster:
        running = job.start(topics.config, cluster.url)
        i = np.arange(200) * 7 % ROWS
        for name in ("plain", "tables"):
            [answer] = topics.ask(InferRequest(name, (Tensor.from_array("i", i),), name), timeout_s=120)
            assert isinstance(answer, InferResponse), answer
            expected = TABLES["whole"][i] if name == "plain" else TABLES["stage 1/2"][i] + TABLES["stage 2/2"][i]
            assert np.array_equal(answer.outputs[0].to_array(), expected)

        placed = workers(cluster.rest, cluster.rest.jobs())
        assert len(placed) == TASK_MANAGERS
        held = {holder(worker): worker for worker in placed}
        assert held.keys() == TABLES.keys(), "each TaskManager does one thing"
        assert all((worker.slots, worker.free_slots) == (1, 0) for worker in placed)
        for holds, worker in held.items():
            found = weights_in(cluster.task_managers[int(worker.name.rsplit("-", 1)[1])].pid)
            assert found == {holds}, f"{worker.name} holds {found}"
        running.cancel()
    topics.close()


def holder(worker: Worker) -> str:
    """Returns the operator of one TaskManager: a stage, or serving of whole models."""
    stages = {task.operator.removeprefix("tables/1 ") for task in worker.tasks if "stage" in task.operator}
    served = {model for task in worker.tasks for model in task.models}
    if stages:
        assert not served
        assert len(worker.tasks) == 1
        return stages.pop()
    assert served == {"plain/1"}
    return "whole"


def weights_in(pid: int) -> set[str]:
    """Returns the tables with rows in the memory of a process or its children."""
    process = psutil.Process(pid)
    found = set()
    needles = {name: table[ROWS // 2 : ROWS // 2 + 4].tobytes() for name, table in TABLES.items()}
    for each in (process, *process.children(recursive=True)):
        for chunk in memory_of(each.pid):
            found |= {name for name, needle in needles.items() if needle in chunk}
    return found


def memory_of(pid: int, chunk_bytes: int = 64 * 2**20) -> Iterator[bytes]:
    """Yields the writable memory of a process, in pieces that overlap by a page."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for first, last in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw", maps, re.MULTILINE):
            at, end = int(first, 16), int(last, 16)
            while at < end:
                try:
                    chunk = os.pread(memory, min(chunk_bytes, end - at), at)
                except OSError:  # reserved but not mapped
                    break
                yield chunk
                at += len(chunk) - 4096 if len(chunk) == chunk_bytes else len(chunk)
    finally:
        os.close(memory)
