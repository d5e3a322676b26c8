"""Models in stages and whole models in one job on a MiniCluster, in both execution modes."""

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import Encoding, ErrorResponse, InferRequest, InferResponse, Parameter
from anabranch.schemas.tensors import Tensor
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.models import TABLE, write_cut_model, write_ensembles_with_stages, write_repository
from tests.flink.service import Topics


@pytest.fixture(scope="module", params=MODES)
def service(
    request: pytest.FixtureRequest, broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Topics]:
    """A job that serves `steps` in three stages (the second twice), ensembles of it, and whole models."""
    repository = tmp_path_factory.mktemp("repository")
    write_repository(repository)
    write_cut_model(repository, "[batching]\nshard_rows = 16\n")
    write_ensembles_with_stages(repository)
    config = Config().replace(
        job={"execution_mode": request.param, "parallelism": 1, "checkpoint_interval_ms": 2000},
        models={"repository": str(repository)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config)
    topics.ask(steps(1), timeout_s=110)
    yield topics
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()


def inputs_of(rows: int) -> tuple[Any, Any]:
    return np.arange(4 * rows, dtype=np.float32).reshape(rows, 4), np.arange(rows) * 3 % 8


def steps(
    rows: int,
    bad: tuple[int, ...] = (),
    encoding: Encoding = Encoding.PROTOBUF,
    outputs: tuple[str, ...] = (),
    model: str = "steps",
    **said: Parameter,
) -> InferRequest:
    x, i = inputs_of(rows)
    i[list(bad)] = 99
    tensors = Tensor.from_array("x", x), Tensor.from_array("i", i)
    return InferRequest(model, tensors, uuid.uuid4().hex, "", said, outputs, encoding)


def check(answer: InferResponse | ErrorResponse, rows: int, without: tuple[int, ...] = ()) -> None:
    assert isinstance(answer, InferResponse), answer
    x, i = (np.delete(array, without, axis=0) for array in inputs_of(rows))
    values = {tensor.name: tensor.to_array() for tensor in answer.outputs}
    assert np.array_equal(values["y"], 2 * x + TABLE[i])
    assert np.array_equal(values["found"], TABLE[i])


@pytest.mark.parametrize("encoding", list(Encoding))
def test_stages_answer_requests_of_all_sizes_once_each(service: Topics, encoding: Encoding) -> None:
    sizes = [1, 7, 16, 17, 100, 1, 333] * 10
    cut = [steps(rows, encoding=encoding) for rows in sizes]
    x = np.ones((3, 4), np.float32)
    whole = [
        InferRequest("double", (Tensor.from_array("x", x),), uuid.uuid4().hex, encoding=encoding) for _ in range(30)
    ]
    answers = service.ask(*cut, *whole)
    for rows, answer in zip(sizes, answers, strict=False):
        check(answer, rows)
    for answer in answers[len(cut) :]:
        assert isinstance(answer, InferResponse), answer
        assert np.array_equal(answer.outputs[0].to_array(), 2 * x + 2)
    service.read_answers(timeout_ms=500)
    assert all(len(service.answers[sent.id]) == 1 for sent in (*cut, *whole))


def test_output_of_an_inner_stage_can_be_requested(service: Topics) -> None:
    [answer] = service.ask(steps(20, outputs=("found",)))
    assert isinstance(answer, InferResponse), answer
    [found] = answer.outputs
    assert found.name == "found"
    assert np.array_equal(found.to_array(), TABLE[inputs_of(20)[1]])


@pytest.mark.parametrize("rows", [10, 100])
def test_rows_that_fail_in_a_stage_fail_alone(service: Topics, rows: int) -> None:
    """10 rows travel in one unit, perhaps with others; 100 as shards of 16."""
    bad = (3, 4, rows - 1)
    letters_before = len(service.letters)
    failing, partial, *good = service.ask(
        steps(rows, bad), steps(rows, bad, partial=True), *[steps(rows) for _ in range(5)]
    )
    for answer in good:
        check(answer, rows)
    check(partial, rows, bad)
    assert partial.parameters["missing_rows"] == f"3-4,{rows - 1}-{rows - 1}"  # type: ignore[union-attr]
    assert isinstance(failing, ErrorResponse), failing
    assert failing.code == "inference_failed"
    letters = service.await_letters(letters_before + 2)[letters_before:]
    [letter] = [letter for letter in letters if letter.id == failing.id]
    assert letter.stage == "stage 2"
    assert letter.original is not None


@pytest.mark.parametrize("rows", [1, 10, 100])
def test_ensemble_member_in_stages_is_merged(service: Topics, rows: int) -> None:
    """The other member is `idle`, whose y is 0 and whose `found` is x."""
    sent = [steps(rows, model="both") for _ in range(5)]
    x, i = inputs_of(rows)
    for answer in service.ask(*sent):
        assert isinstance(answer, InferResponse), answer
        values = {tensor.name: tensor.to_array() for tensor in answer.outputs}
        assert np.array_equal(values["y"], (2 * x + TABLE[i]) / 2)
        assert np.array_equal(values["found"], (x + TABLE[i]) / 2)
    service.read_answers(timeout_ms=500)
    assert all(len(service.answers[request.id]) == 1 for request in sent)


@pytest.mark.parametrize("rows", [10, 100])
def test_ensemble_member_with_failed_stage_obeys_on_failure(service: Topics, rows: int) -> None:
    alone, failing = service.ask(steps(rows, (rows - 1,), model="either"), steps(rows, (rows - 1,), model="both"))
    assert isinstance(alone, InferResponse), alone
    values = {tensor.name: tensor.to_array() for tensor in alone.outputs}
    assert not values["y"].any()
    assert np.array_equal(values["found"], inputs_of(rows)[0])
    assert (alone.parameters["missing_members"], alone.parameters["error_code"]) == ("steps", "inference_failed")
    assert isinstance(failing, ErrorResponse), failing
    assert failing.code == "inference_failed"
    assert f"member steps: row {rows - 1}" in failing.message


def test_deadline_holds_across_stages(service: Topics) -> None:
    late, early = service.ask(steps(100, timeout=1), steps(100, timeout=60_000_000))
    assert isinstance(late, ErrorResponse), late
    assert late.code == "deadline_exceeded"
    check(early, 100)


def test_explained_answer_of_stages_has_shards_and_breakdown(service: Topics) -> None:
    [answer] = service.ask(steps(100, explain=True))
    check(answer, 100)
    assert answer.parameters["shards"] == 7  # type: ignore[union-attr]
    assert all(int(answer.parameters[f"{stage}_us"]) >= 0 for stage in PHASES)  # type: ignore[union-attr]
    assert int(answer.parameters["session_us"]) > 0  # type: ignore[union-attr]
