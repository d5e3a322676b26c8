"""Client of Flink's REST interface."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from anabranch.stack.errors import StackError

_TIMEOUT_S = 10.0
#: Flink refuses a request line of more than 4 KiB.
_MAX_QUERY = 3_000


_STARTING_JOB = frozenset({"INITIALIZING", "CREATED", "FAILING", "RESTARTING", "RECONCILING"})
_STARTING_TASK = ("created", "scheduled", "deploying", "initializing", "reconciling")


class FlinkJob(msgspec.Struct, frozen=True):
    """A job of the cluster.

    Attributes:
        state: `RUNNING`, `FAILED`, `CANCELED`, and so on.
        start_time_ms: Time of submission since the epoch.
        tasks: Number of tasks by state, and in total.
    """

    job_id: str = msgspec.field(name="jid")
    name: str
    state: str
    start_time_ms: int = msgspec.field(name="start-time")
    tasks: dict[str, int] = {}

    @property
    def all_tasks_run(self) -> bool:
        """True if each task has loaded its models."""
        return 0 < self.tasks.get("total", 0) == self.tasks.get("running")

    @property
    def is_starting(self) -> bool:
        """True if a task does not run yet, or the job restarts."""
        return self.state in _STARTING_JOB or any(self.tasks.get(state) for state in _STARTING_TASK)


class JobFailure(NamedTuple):
    """A failure, after which Flink restarts the job."""

    trace: str
    time_ms: int


class FlinkRest:
    """The REST interface of a cluster; keeps no connection."""

    def __init__(self, url: str) -> None:
        """Take `http://HOST:PORT`."""
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise StackError(f"{url!r} is not the address of a Flink cluster: write http://HOST:PORT")
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, parts.port

    def is_up(self) -> bool:
        """Return true if the cluster answers."""
        try:
            self.get("/overview")
        except StackError:
            return False
        return True

    def task_manager_ids(self) -> list[str]:
        """Return the TaskManagers that have reported their slots."""
        return [manager["id"] for manager in self.get("/taskmanagers")["taskmanagers"] if manager["slotsNumber"]]

    def jobs(self) -> list[FlinkJob]:
        """Return running and ended jobs, the newest first."""
        jobs = msgspec.convert(self.get("/jobs/overview")["jobs"], list[FlinkJob])
        return sorted(jobs, key=lambda job: job.start_time_ms, reverse=True)

    def failure_history(self, job_id: str, most: int = 16) -> list[JobFailure]:
        """Return a job's last failures, the newest first."""
        entries = (
            self.get(f"/jobs/{job_id}/exceptions?maxExceptions={most}").get("exceptionHistory", {}).get("entries", ())
        )
        return [JobFailure(str(entry["stacktrace"]), int(entry.get("timestamp", 0))) for entry in entries]

    def failures(self, job_id: str, most: int = 16) -> list[str]:
        """Return the stack traces of a job's last failures, the newest first."""
        return [failure.trace for failure in self.failure_history(job_id, most)]

    def last_failure(self, job_id: str) -> str:
        """Return the stack trace of a job's last failure, or an empty string."""
        return next(iter(self.failures(job_id, 1)), "")

    def job_parameters(self, job_id: str) -> dict[str, str]:
        """Return the global parameters of a job."""
        parameters = self.get(f"/jobs/{job_id}/config").get("execution-config", {}).get("user-config", {})
        return {name: str(value) for name, value in parameters.items()}

    def task_states(self, job_id: str) -> dict[str, dict[str, int]]:
        """Return the number of tasks by operator chain and state."""
        vertices = self.get(f"/jobs/{job_id}")["vertices"]
        return {
            vertex["name"]: {state: count for state, count in vertex["tasks"].items() if count} for vertex in vertices
        }

    def sums(self, job_id: str, choose: Callable[[Iterable[str]], list[str]]) -> dict[str, float]:
        """Return the metrics that `choose` selects by name, summed over all tasks of a job."""
        sums: dict[str, float] = {}
        for vertex in self.get(f"/jobs/{job_id}")["vertices"]:
            path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics"
            names = choose(metric["id"] for metric in self.get(path))
            for some in batched_by_length(names, _MAX_QUERY):
                for metric in self.get(f"{path}?agg=sum&get={quote(','.join(some), safe=',')}"):
                    sums[metric["id"]] = sums.get(metric["id"], 0.0) + metric["sum"]
        return sums

    def cancel(self, job_id: str) -> None:
        """Request the end of a job."""
        self._call("PATCH", f"/jobs/{job_id}?mode=cancel")

    def get(self, path: str) -> Any:
        """Return the decoded answer to GET on a path.

        Raises:
            StackError: The cluster does not answer, or refuses.
        """
        return msgspec.json.decode(self._call("GET", path))

    def post(self, path: str, body: object) -> Any:
        """Send a JSON document, and return the decoded answer.

        Raises:
            StackError: The cluster does not answer, or with an error.
        """
        return msgspec.json.decode(self._call("POST", path, msgspec.json.encode(body)))

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise StackError(
                f"no Flink cluster answers at {self.url} ({error}): start one with `anabranch up`"
            ) from error
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise StackError(f"{self.url}{path} answered {response.status}: {body[:300].decode(errors='replace')}")
        return body


def batched_by_length(names: Iterable[str], limit: int) -> Iterator[list[str]]:
    """Split names into lists of at most `limit` characters."""
    some: list[str] = []
    length = 0
    for name in names:
        if some and length + len(name) > limit:
            yield some
            some, length = [], 0
        some.append(name)
        length += len(name) + 1
    if some:
        yield some
