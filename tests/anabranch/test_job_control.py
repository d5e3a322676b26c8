"""Jobs are found by name, stopped below their own directory, and submitted again when their cluster has lost them."""

from typing import Any, cast

import pytest

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import JobFailed
from anabranch.flink_job.state.saved_state import STATE_PARAMETER
from anabranch.jobs import control as job_control
from anabranch.jobs import keeper as job_keeper
from anabranch.jobs.control import JobControl, cause_of
from anabranch.jobs.keeper import JobKeeper
from anabranch.schemas.model import Catalog
from anabranch.stack.errors import NotRunning, StackError
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

URL = "http://127.0.0.1:8081"
SAVEPOINT = "file:///c/fraud/stopped/savepoint-1"


class FakeRest:
    """A cluster: its jobs, and what was posted to it."""

    url = URL

    def __init__(self, *jobs: FlinkJob, parameters: dict[str, str] | None = None, failure: str = "") -> None:
        self.listed = list(jobs)
        self.parameters = {STATE_PARAMETER: "file:///c/fraud"} if parameters is None else parameters
        self.failure = failure
        self.posted: list[tuple[str, Any]] = []
        self.polls = 0

    def jobs(self) -> list[FlinkJob]:
        return self.listed

    def job_parameters(self, _: str) -> dict[str, str]:
        return self.parameters

    def post(self, path: str, body: Any) -> Any:
        self.posted.append((path, body))
        return {"request-id": "t"}

    def get(self, path: str) -> Any:
        if path.endswith("/checkpoints"):
            completed = {"external_path": "file:///c/fraud/a/chk-7", "trigger_timestamp": 7000}
            return {"latest": {"completed": completed, "savepoint": None, "restored": None}, "counts": {"failed": 2}}
        assert path == "/jobs/a/savepoints/t"
        self.polls += 1
        if self.polls < 2:
            return {"status": {"id": "IN_PROGRESS"}}
        self.listed = []
        operation = {"failure-cause": {"stack-trace": self.failure}} if self.failure else {"location": SAVEPOINT}
        return {"status": {"id": "COMPLETED"}, "operation": operation}


def job(
    job_id: str = "a", name: str = "fraud", state: str = "RUNNING", tasks: dict[str, int] | None = None
) -> FlinkJob:
    return FlinkJob(job_id=job_id, name=name, state=state, start_time_ms=1, tasks=tasks or {})


def control(rest: FakeRest) -> JobControl:
    return JobControl(cast("FlinkRest", rest))


def test_find_takes_name_id_or_the_only_job() -> None:
    rest = FakeRest(job(), job("b", "ocr"), job("c", "fraud", "CANCELED"))
    assert control(rest).find("fraud").job_id == "a"
    assert control(rest).find("b").name == "ocr"
    assert control(FakeRest(job(), job("c", state="FAILED"))).find().job_id == "a"


def test_find_unknown_or_ambiguous_job_lists_the_running_ones() -> None:
    rest = FakeRest(job(), job("b", "ocr"))
    with pytest.raises(NotRunning, match=r"unknown job 'oxr' .*running: fraud \(a\), ocr \(b\)"):
        control(rest).find("oxr")
    with pytest.raises(StackError, match=r"several jobs run .*fraud \(a\), ocr \(b\)"):
        control(rest).find()
    with pytest.raises(NotRunning, match=r"no job runs .*anabranch run"):
        control(FakeRest()).find()


@pytest.mark.parametrize("drain", [True, False])
def test_stop_puts_its_savepoint_below_the_jobs_directory(drain: bool) -> None:
    rest = FakeRest(job())
    assert control(rest).stop(job(), drain=drain) == SAVEPOINT
    assert rest.posted == [("/jobs/a/stop", {"drain": drain, "targetDirectory": "file:///c/fraud/stopped"})]


@pytest.mark.parametrize(
    "starting", [job(state="RESTARTING"), job(tasks={"total": 3, "running": 2, "initializing": 1})]
)
def test_stop_waits_until_the_tasks_have_started(starting: FlinkJob, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = FakeRest(starting)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) > 3 or not rest.posted
        if len(slept) == 3:
            rest.listed = [job(tasks={"total": 3, "running": 2, "finished": 1})]

    monkeypatch.setattr(job_control, "sleep", sleep)
    assert control(rest).stop(starting) == SAVEPOINT
    assert len(slept) > 3


def test_savepoint_goes_to_the_users_folder() -> None:
    rest = FakeRest(job())
    assert control(rest).savepoint(job()) == SAVEPOINT
    assert rest.posted == [
        ("/jobs/a/savepoints", {"cancel-job": False, "target-directory": "file:///c/fraud/savepoints"})
    ]


def test_failed_savepoint_is_reported_with_its_cause() -> None:
    trace = "java.util.concurrent.CompletionException: x\n\tat y\nCaused by: java.io.IOException: disk is full\n\tat z"
    with pytest.raises(StackError, match="no savepoint of job 'fraud': disk is full; the job goes on"):
        control(FakeRest(job(), failure=trace)).savepoint(job())


def test_stop_without_a_directory_says_what_to_do() -> None:
    with pytest.raises(StackError, match="no folder for savepoints"):
        control(FakeRest(job(), parameters={})).stop(job())


def test_summaries_have_last_checkpoint_and_failures() -> None:
    [found] = control(FakeRest(job())).summaries()
    assert (found.checkpoint, found.checkpoint_time_ms, found.failed_checkpoints) == (
        "file:///c/fraud/a/chk-7",
        7000,
        2,
    )
    assert (found.state_url, found.restored_from) == ("file:///c/fraud", None)


class FakeJob:
    """A job that its cluster forgets once."""

    job_id = "a"
    flink_url = URL

    def status(self) -> str:
        return "RUNNING"

    def wait(self, sleep: object) -> None:
        pass


@pytest.mark.parametrize("outage", [True, False])
def test_keeper_submits_a_lost_job_again(monkeypatch: pytest.MonkeyPatch, outage: bool) -> None:
    outages: list[list[FlinkJob] | None] = [None, None] if outage else []
    starts = job(tasks={"total": 2, "running": 1, "initializing": 1})
    serves = job(tasks={"total": 2, "running": 2})
    looks = [[job()], *outages, [], [starts], [serves], [job()], [job(state="FINISHED")]]
    started: list[int] = []
    told: list[str] = []

    def jobs(_: FlinkRest) -> list[FlinkJob]:
        found = looks.pop(0)
        if found is None:
            raise StackError("no cluster answers")
        return found

    def get(_: FlinkRest, path: str) -> Any:
        return {"slots-available": 2} if path == "/overview" else {"vertices": []}

    monkeypatch.setattr(FlinkRest, "jobs", jobs)
    monkeypatch.setattr(FlinkRest, "get", get)
    monkeypatch.setattr(job_keeper, "_WATCH_S", 0)
    config = Config().replace(job={"checkpoint_dir": "file:///c", "delivery": "exactly-once"})
    keeper = JobKeeper(config, URL, Catalog({}), told.append)
    keeper.running = cast("Any", FakeJob())
    monkeypatch.setattr(keeper, "start", lambda: started.append(len(looks)))
    keeper.wait()
    assert len(started) == 1
    assert looks == []
    assert told[-2:] == [f"The cluster at {URL} has lost the job: submitting it again.", "Job a serves."]
    assert len(told) == (3 if outage else 2)


@pytest.mark.parametrize(
    ("trace", "cause"),
    [
        (
            "java.lang.Exception: a\n\tat X.y\nCaused by: java.io.IOException: disk full\n\tat Z\n\t... 3 more",
            "disk full",
        ),
        (
            "org.apache.X: a\nCaused by: pemja.core.PythonException: <class 'E'>: cannot load m\n\tat a.py(1)",
            "cannot load m",
        ),
        (
            "a.RuntimeException: b\nCaused by: java.lang.RuntimeException: Error received from SDK harness: "
            "Traceback (most recent call last):\n  File 'a.py', line 3\n    x\nValueError: bad\n\n\tat org.Q",
            "ValueError: bad",
        ),
        ("", "Flink gives no cause"),
    ],
)
def test_cause_of_a_trace_is_the_innermost_message(trace: str, cause: str) -> None:
    assert cause_of(trace) == cause


class FailingJob(FakeJob):
    """A job that fails before it serves."""

    flink_url = URL
    is_cancelled = False

    def status(self) -> str:
        return "RESTARTING"

    def cancel(self, sleep: object) -> None:
        self.is_cancelled = True


def test_keeper_start_that_fails_thrice_ends_with_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [[], ["E: no module"], ["E: no module"] * 3]
    monkeypatch.setattr(FlinkRest, "failures", lambda *_: looks.pop(0))
    told: list[str] = []
    keeper = JobKeeper(Config(), URL, Catalog({}), told.append, lambda _: None)
    keeper.running = cast("Any", FailingJob())
    with pytest.raises(JobFailed, match="failed 3 times before it served: E: no module"):
        keeper.await_serving(failures=3)
    assert told == ["The job failed before it served, and Flink starts it again: E: no module"]
    assert cast("Any", keeper.running).is_cancelled
