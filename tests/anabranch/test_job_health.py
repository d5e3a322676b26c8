"""Troubles of a job, in words, from Flink's REST interface."""

from typing import Any, cast

import pytest

from anabranch.flink_job.config import Config
from anabranch.flink_job.job import flink_options
from anabranch.flink_job.model_summary import LEFT_OUT_PARAMETER, encode_left_out
from anabranch.jobs.checkpoints import CheckpointHealth, checkpoint_health
from anabranch.jobs.health import healths
from anabranch.jobs.left_out import await_reports, left_out_models
from anabranch.operators.core.metrics import left_out_token
from anabranch.schemas.model import LeftOut
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest, JobFailure

NOW_MS = 1_000_000
TOLERABLE = "execution.checkpointing.tolerable-failed-checkpoints"


def checkpoint(status: str, at_ms: int, message: str = "") -> dict[str, Any]:
    return {"status": status, "trigger_timestamp": at_ms} | ({"failure_message": message} if message else {})


def statistics(*history: dict[str, Any], completed_ms: int | None = None) -> dict[str, Any]:
    completed = None if completed_ms is None else {"trigger_timestamp": 1, "latest_ack_timestamp": completed_ms}
    return {"history": list(history), "latest": {"completed": completed}}


def test_checkpoint_health_counts_failures_since_the_last() -> None:
    found = checkpoint_health(
        statistics(
            checkpoint("IN_PROGRESS", 900_000),
            checkpoint("FAILED", 800_000, "No space left on device"),
            checkpoint("FAILED", 700_000, "other"),
            checkpoint("COMPLETED", 600_000),
            checkpoint("FAILED", 500_000, "older"),
            completed_ms=610_000,
        )
    )
    assert found == CheckpointHealth(
        completed_ms=610_000, failures=2, cause="No space left on device", under_way_ms=900_000
    )
    assert found.summary(NOW_MS) == (
        "6 min ago; failed 2 times in a row: No space left on device; one is under way for 100 s"
    )


@pytest.mark.parametrize(
    ("history", "summary"),
    [
        ([], "none yet"),
        ([checkpoint("IN_PROGRESS", NOW_MS - 59_000)], "none yet"),
        ([checkpoint("IN_PROGRESS", NOW_MS - 61_000)], "none yet; one is under way for 61 s"),
        (
            [checkpoint("FAILED", 1, "Checkpoint expired before completing.")],
            "none yet; failed once: it took longer than job.checkpoint_timeout_ms: storage is slow, or tasks are busy",
        ),
    ],
)
def test_checkpoint_health_is_told_in_plain_words(history: list[dict[str, Any]], summary: str) -> None:
    assert checkpoint_health(statistics(*history)).summary(NOW_MS) == summary


@pytest.mark.parametrize(
    ("delivery", "chosen", "tolerated"),
    [
        ("exactly-once", None, "10"),
        ("at-least-once", None, str(2**31 - 1)),
        ("at-least-once", 3, "3"),
        ("exactly-once", 0, "0"),
        ("exactly-once", -1, str(2**31 - 1)),
    ],
)
def test_options_tolerate_the_configured_failures(delivery: str, chosen: int | None, tolerated: str) -> None:
    job = {"delivery": delivery, "max_failed_checkpoints": chosen, "checkpoint_timeout_ms": 5000}
    options = flink_options(Config().replace(job=job))
    assert options[TOLERABLE] == tolerated
    assert options["execution.checkpointing.timeout"] == "5000 ms"


class FakeCluster:
    """A job of two vertices with models; `names` are the metrics of each look at the first."""

    def __init__(self, *names: list[str]) -> None:
        self.names = list(names)
        self.gone = False

    def job_parameters(self, _: str) -> dict[str, str]:
        return {LEFT_OUT_PARAMETER: encode_left_out([LeftOut("a", "1", "half a file")])}

    def sums(self, _: str, choose: Any) -> dict[str, float]:
        counts = {"requests": 4.0, "ms": 1000.0}
        counts = {f"{name}.anabranch.clock.ahead_{kind}": count for name in "ab" for kind, count in counts.items()}
        return {name: counts[name] for name in choose([*counts, "a.anabranch.models.opened"])}

    def failure_history(self, *_: object) -> list[JobFailure]:
        last = JobFailure("E: x\nCaused by: Exceeded checkpoint tolerable failure threshold.", NOW_MS - 5_000)
        return [last, JobFailure("E: older", NOW_MS - 90_000)]

    def get(self, path: str) -> Any:
        if self.gone:
            raise StackError("the job ended")
        if path.endswith("/checkpoints"):
            return statistics(checkpoint("FAILED", NOW_MS, "disk full"))
        if path == "/jobs/j":
            names = {"v": "requests -> serve", "s": "m/1 stage 1/2", "x": "errors: Writer"}
            return {"vertices": [{"id": key, "name": name} for key, name in names.items()]}
        assert not path.startswith("/jobs/j/vertices/x")
        some = self.names.pop(0) if path.startswith("/jobs/j/vertices/v") else ["stage.anabranch.models.opened"]
        return [{"id": name} for name in some]


def metric(left_out: LeftOut) -> str:
    return f"serve.anabranch.left_out.{left_out_token(left_out)}"


def rest(*names: list[str]) -> FlinkRest:
    return cast("FlinkRest", FakeCluster(*names))


def test_left_out_models_are_of_submission_and_tasks() -> None:
    other = LeftOut("b", "2", "no memory: 3.5 GB, in all")
    names = [
        "serve.numRecordsIn",
        metric(other),
        metric(other),
        "serve.anabranch.left_out.!",
        metric(LeftOut("a", "1", "half a file")),
    ]
    assert left_out_models(rest(names), "j") == [LeftOut("a", "1", "half a file"), other]


def test_await_reports_ends_when_all_operators_opened() -> None:
    waited: list[float] = []
    opened = "serve.anabranch.models.opened"
    cluster = rest(*[[]] * 4, ["serve.numRecordsIn"], [opened], [opened])
    await_reports(cluster, "j", 60, waited.append)
    assert waited == [0.5, 1.0, 2.0, 4.0, 4.0]
    await_reports(rest(*[[]] * 10), "j", 0, waited.append)
    assert len(waited) == 5


def test_healths_of_jobs_name_all_troubles() -> None:
    jobs = [FlinkJob("j", "ocr", "RESTARTING", 1), FlinkJob("k", "old", "FAILED", 0)]
    [found] = healths(rest([]), jobs)
    assert found.troubles(NOW_MS) == [
        "does not run: Exceeded checkpoint tolerable failure threshold.",
        "model a/1 is not served: half a file; its requests get model_unavailable",
        "last checkpoint: none yet; failed once: disk full",
        "since its start, 8 requests came 250 ms before their time: a sender's clock is ahead",
    ]
    cause = "Exceeded checkpoint tolerable failure threshold."
    assert found.restarted(NOW_MS) == f"2 times, the last 5 s ago: {cause}"
    [running] = healths(rest([]), [FlinkJob("j", "ocr", "RUNNING", 1)])
    assert (running.failure, running.restart_cause) == ("", cause)
    gone = rest([])
    cast("Any", gone).gone = True
    assert healths(gone, jobs) == []
