"""Starts a job from its state, and starts it again when its cluster has lost it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from anabranch.flink_job.config import Config
from anabranch.flink_job.slots import slots_needed
from anabranch.jobs.control import ENDED
from anabranch.schemas.model import Catalog
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkRest

if TYPE_CHECKING:
    from anabranch.flink_job.job import RunningJob
    from anabranch.flink_job.state.saved_state import SavedState

_POLL_S = 0.3
_WATCH_S = 1.0


class JobKeeper:
    """Keeps one job running on a cluster that may lose it.

    Attributes:
        running: The job as it was last submitted.
        started_from: Path of the state that it started from; None for a start without.
    """

    running: RunningJob

    def __init__(
        self,
        config: Config,
        flink_url: str | None,
        catalog: Catalog,
        tell: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start nothing yet.

        Args:
            flink_url: REST address of the cluster; None for a MiniCluster in this process.
            tell: Is told in one line what happens.
            sleep: Waits for seconds; an exception from it ends any method.
        """
        self._config = config
        self._flink_url = flink_url
        self._catalog = catalog
        self._tell = tell
        self._sleep = sleep
        self.started_from: str | None = None

    def start(self, *, fresh: bool = False, path: str = "") -> None:
        """Submit the job from its newest state, from that in `path`, or without one."""
        from anabranch.flink_job import job  # noqa: PLC0415 - imports PyFlink, which takes a second
        from anabranch.flink_job.state.state_directory import starting_point  # noqa: PLC0415 - the same

        url, state = self._config.job.state_url, None
        if url or path:
            state = starting_point(self._config, fresh=fresh, path=path)
        if state:
            self._tell(_started_from(state))
        elif url:
            self._tell("Starts without state." if fresh else f"Starts without state: {url} has none yet.")
        self.started_from = state.path if state else None
        self.running = job.start(self._config, self._flink_url, catalog=self._catalog, state=state)

    def await_serving(self) -> None:
        """Wait until every task has loaded its models; raise if the job ends."""
        while self.running.status() not in ENDED:
            if self.running.status() == "RUNNING" and self._tasks_run():
                self._end_transactions()
                return
            self._sleep(_POLL_S)
        self.running.wait(self._sleep)

    def await_slots(self) -> None:
        """Wait until the cluster answers and has slots for the job."""
        rest, wanted = FlinkRest(self._flink_url or ""), slots_needed(self._catalog, self._config.job.parallelism)
        while True:
            with suppress(StackError):
                if rest.get("/overview")["slots-available"] >= wanted:
                    return
            self._sleep(_POLL_S)

    def wait(self) -> None:
        """Wait for the end of the job; submit it again when the cluster has lost it.

        Raises:
            Exception: The job failed or was cancelled.
        """
        while self._flink_url is not None and self._config.job.state_url:
            if self._await_end_or_loss(FlinkRest(self._flink_url)):
                break
            self._tell(f"The cluster at {self._flink_url} has lost the job: submitting it again.")
            self.await_slots()
            self.start()
            self.await_serving()
            self._tell(f"Job {self.running.job_id} serves.")
        self.running.wait(self._sleep)

    def _await_end_or_loss(self, rest: FlinkRest) -> bool:
        """Return whether the job ended; False if the cluster does not know it."""
        was_up = True
        while True:
            try:
                states = {job.job_id: job.state for job in rest.jobs()}
            except StackError:
                if was_up:
                    self._tell(f"The JobManager at {self._flink_url} does not answer: waiting for it.")
                was_up = False
            else:
                was_up = True
                state = states.get(self.running.job_id)
                if state is None:
                    return False
                if state in ENDED:
                    return True
            self._sleep(_WATCH_S)

    def _end_transactions(self) -> None:
        """End what an earlier run with exactly-once delivery left open; a job with this delivery does so itself."""
        if self._config.job.delivery == "exactly-once":
            return
        from anabranch.flink_job.kafka.connectors import transaction_prefix  # noqa: PLC0415 - imports PyFlink
        from anabranch.flink_job.kafka.properties import python_client_options  # noqa: PLC0415 - with it
        from anabranch.stack.kafka.transactions import end_transactions  # noqa: PLC0415 - imports Kafka

        kafka = self._config.kafka
        end_transactions(kafka.bootstrap_servers, transaction_prefix(self._config), python_client_options(kafka))

    def _tasks_run(self) -> bool:
        vertices = FlinkRest(self.running.flink_url).get(f"/jobs/{self.running.job_id}")["vertices"]
        return all(vertex["status"] == "RUNNING" for vertex in vertices)


def refuse_second_job(flink_url: str, name: str) -> None:
    """Refuse a job whose name runs already: two jobs would use one state and one set of transactions.

    Raises:
        StackError: The cluster runs such a job.
    """
    for found in FlinkRest(flink_url).jobs():
        if found.name == name and found.state not in ENDED:
            raise StackError(
                f"the cluster at {flink_url} runs a job named {name!r} already ({found.job_id}): replace it with "
                f"`anabranch upgrade`, stop it with `anabranch stop`, or choose another [job] name"
            )


def _started_from(state: SavedState) -> str:
    taken = datetime.fromtimestamp(state.taken_at_ms / 1000, UTC).astimezone()
    return f"Starts from the {state.label} of {taken:%Y-%m-%d %H:%M:%S}: {state.path}"
