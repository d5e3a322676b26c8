"""Requests that end their process: each is found within three restarts, and its neighbours are answered."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.schemas.errors import RequestCrashesModel
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import FIRST_PROCESS
from tests.flink.killing_backend import POISON, KillingBackend
from tests.flink.models import write_chain, write_repository
from tests.flink.service import Topics, durable

CHAIN = """
[chain]
steps = [{ model = "twice.onnx", before = "steps.py:check" }]
inputs.t = { datatype = "FP32", shape = [1] }
outputs.y = { datatype = "FP32", shape = [1] }
"""
FUNCTIONS = """
import os, signal

def check(tensors):
    if tensors["t"][0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": tensors["t"]}
"""


def rows_of(number: int, rows: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return number + np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)


def request(number: int, x: Any) -> InferRequest:
    return InferRequest("double", (Tensor.from_array("x", x),), str(number))


def chained(name: str, t: float) -> InferRequest:
    return InferRequest("chained", (Tensor.from_array("t", np.array([t], np.float32)),), name)


def poisoned(rows: int) -> Any:
    x = rows_of(0, rows)
    x[rows // 2, 0] = POISON
    return x


def await_answers(topics: Topics, cluster: FlinkCluster, names: Iterable[str], timeout_s: float) -> int:
    """Waits for the answers, and replaces TaskManagers that ended; returns their number."""
    wanted, end, ended = set(names), time.monotonic() + timeout_s, 0
    while not wanted <= topics.answers.keys():
        assert time.monotonic() < end, f"no answer to {sorted(wanted - topics.answers.keys())}"
        topics.read_answers()
        for number, process in list(cluster.task_managers.items()):
            if not process.is_alive():
                ended += 1
                cluster.kill_task_manager(number)
                cluster.add_task_manager()
    return ended


@pytest.mark.recovery
@pytest.mark.timeout(500)
@pytest.mark.parametrize("mode", FIRST_PROCESS)
def test_requests_that_end_their_process_are_refused(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    repository = tmp_path / "repository"
    write_repository(repository)
    write_chain(repository / "chained", CHAIN, FUNCTIONS)
    config = durable("crashing", mode, tmp_path, repository)
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "cluster", task_managers=2, slots=2) as cluster:
        running = job.start(topics.config, cluster.url, KillingBackend())
        topics.ask(request(0, rows_of(0)), chained("1", 1), timeout_s=120)
        good = [request(number, rows_of(number, number % 3 + 1)) for number in range(10, 50)]
        bad = [request(100, poisoned(1))]
        if mode == "process":  # Other processes start faster.
            bad += [request(101, poisoned(100)), chained("102", -1)]
        mixed = [*good[:20], *bad, *good[20:], chained("103", 3)]
        topics.send(*(codec.encode_request(each) for each in mixed))
        ended = await_answers(topics, cluster, (each.id for each in mixed), 400)

        for each in good:
            answer = topics.answers[each.id][0]
            assert isinstance(answer, InferResponse), answer
            assert np.array_equal(answer.outputs[0].to_array(), 2 * each.inputs[0].to_array() + 2)
        chain = topics.answers["103"][0]
        assert isinstance(chain, InferResponse), chain
        assert chain.outputs[0].to_array().tolist() == [6]
        for each in bad:
            refused = topics.answers[each.id][0]
            assert isinstance(refused, ErrorResponse), refused
            assert refused.code == RequestCrashesModel.code
        letters = {letter.id: letter for letter in topics.await_letters(len(bad))}
        assert {name: letter.original for name, letter in letters.items()} == {
            each.id: codec.encode_request(each) for each in bad
        }
        # The first ones may come before a checkpoint that Flink could restore.
        failovers = cluster.rest.get(f"/jobs/{running.job_id}/exceptions")["exceptionHistory"]["entries"]
        crashes = ended if mode == "thread" else len(failovers)
        assert 1 <= crashes <= 3 * len(bad)

        # The same content again costs no restart.
        topics.send(codec.encode_request(request(200, poisoned(1))), codec.encode_request(request(201, rows_of(201))))
        assert await_answers(topics, cluster, ["200", "201"], 60) == 0
        assert isinstance(topics.answers["200"][0], ErrorResponse)
        assert isinstance(topics.answers["201"][0], InferResponse)
        running.cancel()
    topics.close()
