"""Credits bound the exchange in a job, in both modes: urgent requests pass, and every request is answered once."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from anabranch.flink import environment, infer
from anabranch.flink_job import installation, job
from anabranch.flink_job.config import Config
from anabranch.operators.backends.base import Session
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.transport.ticket import Ticket
from anabranch.operators.runtime import flink_compat
from anabranch.operators.transport.ticket_returns import TicketReturns
from anabranch.schemas.messages import InferRequest, InferResponse
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from tests.flink.conftest import MODES
from tests.flink.models import TABLE, write_chain, write_cut_model, write_ensembles_with_stages, write_repository
from tests.flink.service import PARTITIONS, Topics
from tests.flink.slow_backend import SlowBackend
from tests.flink.stream_graph import stream_nodes
from tests.flink.test_chains import CHAIN, FUNCTIONS, words
from tests.flink.test_stages import steps

UNIT_S, UNITS = 0.1, 40


def double(rows: int) -> InferRequest:
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    return InferRequest("double", (Tensor.from_array("x", x),), uuid.uuid4().hex)


def check_urgent_passes(topics: Topics) -> list[InferRequest]:
    """Sends many units and then an urgent one; returns the many, of which some still wait."""
    many = [steps(1, priority=9) for _ in range(UNITS)]
    topics.send(*(codec.encode_request(each) for each in many))
    while not any(each.id in topics.answers for each in many):
        topics.read_answers()
    topics.ask(steps(1, priority=1))
    left = sum(each.id not in topics.answers for each in many)
    assert left > UNITS / 3, "it waited for records that Flink held"
    return many


def check_answers(topics: Topics) -> None:
    """Sends split requests and others, and compares their answers."""
    sent = [ask(rows) for rows in (1, 7, 16, 17, 100, 333) * 4 for ask in (steps, double)]
    for request, answer in zip(sent, topics.ask(*sent), strict=True):
        assert isinstance(answer, InferResponse), answer
        x = request.inputs[0].to_array()
        y = next(tensor.to_array() for tensor in answer.outputs if tensor.name == "y")
        expected = 2 * x + (TABLE[request.inputs[1].to_array()] if request.model_name == "steps" else 2)
        assert np.array_equal(y, expected)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_credits_let_urgent_requests_pass_and_lose_none(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    repository, quick = tmp_path / "repository", tmp_path / "quick"
    write_repository(repository)
    write_cut_model(repository, "[batching]\nmax_rows = 1\nshard_rows = 16\n")
    write_ensembles_with_stages(repository)
    write_chain(repository / "words", CHAIN, FUNCTIONS)
    config = Config().replace(
        job={"name": f"credits-{mode}", "execution_mode": mode, "parallelism": 2, "checkpoint_interval_ms": 1000},
        exchange={"claim_from_bytes": 256},
        models={"repository": str(repository)},
    )
    topics = Topics(broker, config)
    running = job.start(topics.config, backend=SlowBackend("steps", UNIT_S, str(quick)))
    # Both tasks must run before the load starts.
    first = [double(1) for _ in range(PARTITIONS)]
    for partition, each in enumerate(first):
        topics.send(codec.encode_request(each), partition=partition)
    topics.await_answers((each.id for each in first), timeout_s=150)

    many = check_urgent_passes(topics)
    quick.touch()
    check_answers(topics)
    chained = [words(f"some {'words ' * count}here") for count in range(8)]
    for answer in topics.ask(*chained):
        assert isinstance(answer, InferResponse), answer
    topics.await_answers(each.id for each in many)
    topics.read_answers(timeout_ms=500)
    assert all(len(seen) == 1 for seen in topics.answers.values())
    assert running.status() == "RUNNING"
    running.cancel()
    topics.close()


@dataclass(frozen=True)
class WithoutUdp:
    """A back-end in whose process no ticket returns, as if UDP were blocked between TaskManagers."""

    def load(self, model: ModelSpec) -> Session:
        TicketReturns.send = lambda *_: None  # type: ignore[method-assign]
        return OnnxBackend().load(model)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_credits_without_udp_serve_all_requests(broker: KafkaBroker, tmp_path: Path, mode: str) -> None:
    """On a cluster, as its processes end with it."""
    repository = tmp_path / "repository"
    write_repository(repository)
    write_cut_model(repository, "[batching]\nmax_rows = 1\nshard_rows = 16\n")
    config = Config().replace(
        job={
            "name": f"without-udp-{mode}",
            "execution_mode": mode,
            "parallelism": 2,
            "checkpoint_dir": (tmp_path / "state").as_uri(),
        },
        models={"repository": str(repository)},
    )
    topics = Topics(broker, config)
    with FlinkCluster(tmp_path / "flink", task_managers=2, slots=5) as cluster:
        running = job.start(topics.config, cluster.url, WithoutUdp())
        answers = topics.ask(*(ask(rows) for rows in (1, 40, 100) * 10 for ask in (steps, double)))
        assert all(isinstance(answer, InferResponse) for answer in answers)
        assert running.status() == "RUNNING"
        logs = "".join(path.read_text(errors="replace") for path in (tmp_path / "flink" / "logs").iterdir())
    topics.close()
    assert "let UDP pass between TaskManagers" in logs


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_credits_in_the_job_of_a_user_lose_no_element(model_repository: Path, mode: str) -> None:
    settings = Config().replace(job={"execution_mode": mode, "parallelism": 2})
    env = environment(settings)
    rated = infer(
        env.from_collection(list(range(200))),
        model="strict",
        repository=model_repository,
        inputs=lambda number: {"i": number % 8},
        outputs=lambda number, outputs: (number, float(outputs["y"])),
        uid="rate",
        parallelism=2,
        config=settings,
    )
    assert sorted(rated.execute_and_collect("credits")) == [(number, 10.0 * (number % 8)) for number in range(200)]


def edges(config: Config) -> dict[str, tuple[str, set[str]]]:
    """Identity of each operator, and the partitioners of the edges into it."""
    return {
        node.getOperatorName(): (
            node.getTransformationUID(),
            {str(edge.getPartitioner()) for edge in node.getInEdges()},
        )
        for node in stream_nodes(config)
    }


def test_credits_change_edges_and_keep_identities(tmp_path: Path) -> None:
    write_repository(tmp_path)
    write_cut_model(tmp_path)
    config = Config().replace(models={"repository": str(tmp_path)}, job={"parallelism": 2})
    off, on = edges(config.replace(exchange={"credits": "off"})), edges(config)
    assert {name: uid for name, (uid, _) in off.items()} == {name: uid for name, (uid, _) in on.items()}
    changed = {name: (off[name][1], into) for name, (_, into) in on.items() if into != off[name][1]}
    assert len(changed) == 2
    assert all(each == ({"REBALANCE"}, {"CUSTOM"}) for each in changed.values())
    assert "infer" in changed


def test_credits_reader_in_java_is_that_of_the_ticket() -> None:
    installation.activate()
    choice = flink_compat.java_gateway().jvm.anabranch.ReaderPartitioner()
    for reader in (0, 7, 258, 70_000):
        encoded = Ticket(reader, b"12345678", bytes(4), 1, 0, 1).encode()
        assert choice.getKey(encoded + b"record") == reader
    assert choice.getKey(b"\1") == choice.getKey(b"\1record of an earlier release") == 0
    assert [choice.partition(reader, 3) for reader in (0, 2, 5)] == [0, 2, 2]
