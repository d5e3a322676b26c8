"""A savepoint under load is restored by a changed job: nothing is lost, doubled or wrong.

            tasks   models                                     amid requests, a savepoint stops it
1st job     1       double, lookup, steps in 2 stages
2nd job     3       + tens, + the ensemble halfway             of 1st and 2nd kind
3rd job     2       - lookup, steps in 3 stages                lookup's queued requests get `unknown_model`
4th job     2       - halfway, steps in 2 stages               so do those of halfway
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job.state.saved_state import SavedState
from anabranch.jobs.control import JobControl
from anabranch.schemas.messages import ErrorResponse, InferRequest, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import FIRST_PROCESS
from tests.flink.models import TABLE, write_cut_model, write_repository
from tests.flink.service import Topics, await_checkpoint
from tests.flink.test_restart import PATIENT, configured, newest, start

ROUND = 120


class Load:
    """Requests of all kinds, with the answers that they must get."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._expected: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}

    def send(self, *models: str) -> None:
        """Sends a round of requests in turn to the models."""
        self._topics.send(*(codec.encode_request(each) for each in self._requests(models)))

    def _requests(self, models: tuple[str, ...]) -> Iterator[InferRequest]:
        first = len(self._expected)
        for number in range(first, first + ROUND):
            model, rows = models[number % len(models)], 40 if number % 10 == 0 else 1
            x = number + np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
            i = (number + np.arange(rows)) % 8
            inputs: list[tuple[str, Any]] = [("x", x)] if model in ("double", "halfway") else [("i", i)]
            inputs = [("x", x), ("i", i)] if model == "steps" else inputs
            self._expected[f"{model}-{number}"] = {
                "double": 2 * x + 2,
                "halfway": 2 * x + 1.5,
                "steps": 2 * x + TABLE[i],
                "lookup": np.float32(10) * i,
                "tens": np.float32(10) * i,
            }[model].astype(np.float32)
            tensors = tuple(Tensor.from_array(name, value) for name, value in inputs)
            yield InferRequest(model, tensors, f"{model}-{number}")

    def check(self, removed: tuple[str, ...]) -> int:
        """Awaits all answers and compares them; returns how many requests found their model removed."""
        refused = 0
        for name, answer in self._topics.await_answers(self._expected, timeout_s=120).items():
            if name.startswith(removed) and isinstance(answer, ErrorResponse):
                assert answer.code == "unknown_model"
                refused += 1
                continue
            assert isinstance(answer, InferResponse), answer
            [y] = [tensor.to_array() for tensor in answer.outputs if tensor.name == "y"]
            assert np.array_equal(y, self._expected[name]), name
        return refused


def serve_only(folder: Path, *names: str, stages: int) -> None:
    """Makes a repository of some models of `tests.flink.models`, and of `steps` in that many stages."""
    shutil.rmtree(folder, ignore_errors=True)
    write_repository(folder)
    for model in folder.iterdir():
        if model.name not in names:
            shutil.rmtree(model)
    for name in {"double", "lookup"} & set(names):
        (folder / name / "model.toml").write_text(PATIENT)
    write_cut_model(folder, "[batching]\nshard_rows = 16\n", stages=stages)


@pytest.mark.recovery
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", FIRST_PROCESS)
def test_changed_job_loses_doubles_and_falsifies_nothing(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    topics = Topics(broker, configured(tmp_path, mode, "exactly-once", "changes"))
    models, load = tmp_path / "models", Load(topics)
    with FlinkCluster(tmp_path / "cluster", task_managers=1, slots=6) as cluster:
        control = JobControl(cluster.rest)

        def change(parallelism: int, *names: str, stages: int, state: SavedState | None) -> None:
            serve_only(models, *names, stages=stages)
            topics.config = topics.config.replace(job={"parallelism": parallelism})
            start(topics, cluster, state)

        def stop_amid(*served: str) -> SavedState:
            load.send(*served)
            await_checkpoint(cluster, control.find().job_id)
            path = control.stop(control.find())
            state = newest(topics)
            assert (state.path, state.kind) == (path, "stopped")
            return state

        change(1, "double", "lookup", stages=2, state=None)
        state = stop_amid("double", "steps", "lookup")
        change(3, "double", "lookup", "tens", "halfway", stages=2, state=state)
        load.send("double", "halfway", "tens", "steps")
        state = stop_amid("lookup")
        change(2, "double", "tens", "halfway", stages=3, state=state)
        state = stop_amid("halfway", "steps")
        change(2, "double", "tens", stages=2, state=state)
        load.send("double", "steps")

        refused = load.check(removed=("lookup", "halfway"))
        assert refused > 0, "no request waited for the removed model"
        topics.check_repeated("exactly-once")
        control.cancel(control.find())
    topics.close()
