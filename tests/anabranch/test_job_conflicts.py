"""A job that would disturb a running one is refused, with the way out."""

from typing import Any, cast

import pytest

from anabranch.flink_job.config import Config
from anabranch.flink_job.job_identity import IDENTITY_PARAMETER, encode_identity, identity_of
from anabranch.flink_job.state.saved_state import SavedState
from anabranch.jobs.conflicts import conflict_error, find_conflict, refuse_elsewhere
from anabranch.stack.errors import JobConflict
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

NOW_MS = 1_000_000.0
RUNNING = Config().replace(
    job={"name": "first"}, kafka={"group_id": "g", "requests_topic": "q", "responses_topic": "r"}
)
OTHER = {"group_id": "g2", "requests_topic": "q2", "responses_topic": "r2"}


class FakeCluster:
    """Runs one job, and one of an older version without identity."""

    def __init__(self, state: str = "RUNNING") -> None:
        self.state = state

    def jobs(self) -> list[FlinkJob]:
        return [FlinkJob("a", "first", self.state, 2), FlinkJob("b", "older", self.state, 1)]

    def job_parameters(self, job_id: str) -> dict[str, str]:
        return {IDENTITY_PARAMETER: encode_identity(identity_of(RUNNING))} if job_id == "a" else {}


def conflict(job: dict[str, Any], kafka: dict[str, Any], state: str = "RUNNING") -> tuple[FlinkJob, str] | None:
    wanted = RUNNING.replace(job=job, kafka=kafka)
    return find_conflict(cast("FlinkRest", FakeCluster(state)), identity_of(wanted))


@pytest.mark.parametrize(
    ("job", "kafka", "reason"),
    [
        ({}, OTHER, "its name is 'first', too"),
        ({"name": "older"}, OTHER, "its name is 'older', too"),
        ({"name": "x"}, {"responses_topic": "r2"}, "it reads 'q' as group 'g', too"),
        ({"name": "x"}, {"group_id": "g2"}, "it answers 'q' on 'r', too"),
        ({"name": "x"}, {"group_id": "g2", "bootstrap_servers": "b:1, 127.0.0.1:9092"}, "it answers 'q' on 'r', too"),
    ],
)
def test_job_that_would_disturb_another_is_refused(job: dict[str, Any], kafka: dict[str, Any], reason: str) -> None:
    found = conflict(job, kafka)
    assert found is not None
    assert found[1].startswith(reason)
    assert "--replace" in str(conflict_error("http://x:1", *found))
    assert conflict(job, kafka, "CANCELED") is None


@pytest.mark.parametrize(
    "kafka",
    [
        OTHER,
        {"group_id": "g2", "responses_topic": "r2"},  # A shadow job reads the same requests.
        {"requests_topic": "q2", "responses_topic": "r2"},  # Flink commits offsets by topic.
        {"bootstrap_servers": "elsewhere:9092"},
    ],
)
def test_job_of_another_name_and_topic_is_allowed(kafka: dict[str, Any]) -> None:
    assert conflict({"name": "x"}, kafka) is None


def state(number: int, at_ms: float, kind: Any = "checkpoint", job_id: str = "elsewhere") -> SavedState:
    path = f"file:///c/first/{job_id}/chk-{number}"
    return SavedState(path=path, kind=kind, taken_at_ms=int(at_ms), number=number, size_bytes=1)


@pytest.mark.parametrize(
    ("first", "here", "waits"),
    [
        ([], [], False),
        ([state(3, NOW_MS - 900)], [], True),
        ([state(3, NOW_MS - 900)], ["elsewhere"], False),
        ([state(3, NOW_MS - 3100)], [], False),
        ([state(3, NOW_MS - 900), state(0, NOW_MS - 800, "stopped")], [], False),
    ],
)
def test_fresh_checkpoint_of_an_unknown_job_is_watched(first: list[SavedState], here: list[str], waits: bool) -> None:
    slept: list[float] = []
    refuse_elsewhere(lambda: first, here, 1000, NOW_MS, slept.append)
    assert (sum(slept) >= 1.5) == waits
    assert sum(slept) <= 15


def test_job_that_writes_checkpoints_elsewhere_is_refused() -> None:
    looks = [[state(3, NOW_MS - 900)], [state(3, NOW_MS - 900)], [state(4, NOW_MS + 100), state(3, NOW_MS - 900)]]
    with pytest.raises(JobConflict, match="another cluster and writes checkpoints to file:///c/first: stop"):
        refuse_elsewhere(lambda: looks.pop(0), [], 1000, NOW_MS, lambda _: None)
