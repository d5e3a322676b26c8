"""Starts a job from its state, and starts it again when its cluster has lost it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from anabranch.flink_job.config import Config, execution_mode
from anabranch.flink_job.errors import JobFailed
from anabranch.flink_job.slots import slots_needed
from anabranch.jobs.control import ENDED, cause_of
from anabranch.jobs.left_out import await_reports, left_out_line, left_out_models
from anabranch.schemas.model import Catalog, LeftOut
from anabranch.stack.errors import StackError
from anabranch.stack.flink.rest import FlinkRest

if TYPE_CHECKING:
    from anabranch.flink_job.job import RunningJob
    from anabranch.flink_job.model_repository.store import StoredModels
    from anabranch.flink_job.state.saved_state import SavedState

_POLL_S = 0.3
_WATCH_S = 1.0
#: Flink shows metrics every 10 s.
_REPORTS_S = 12.0
_LOOKS = 10


class JobKeeper:
    """Keeps one job running on a cluster that may lose it.

    Attributes:
        running: The job as it was last submitted.
        started_from: Path of the state that it started from; None for a start without.
        catalog: Models as submitted.
        left_out: Models that its tasks could not load.
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
        self.catalog = catalog
        self.tell = tell
        self._sleep = sleep
        self.started_from: str | None = None
        self.left_out: list[LeftOut] = []
        self._told: set[str] = set()
        self._stored: StoredModels | None = None

    def start(self, *, fresh: bool = False, path: str = "") -> None:
        """Submit the job from its newest state, from that in `path`, or without one."""
        from anabranch.flink_job import job  # noqa: PLC0415 - imports PyFlink, which takes a second
        from anabranch.flink_job.state.state_directory import note_models, starting_point  # noqa: PLC0415 - the same

        url, state = self._config.job.state_url, None
        if url or path:
            state = starting_point(self._config, fresh=fresh, path=path)
        if state:
            self.tell(_started_from(state))
        elif url:
            self.tell("Starts without state." if fresh else f"Starts without state: {url} has none yet.")
        self.started_from = state.path if state else None
        stored = self.store()
        if url:
            self._tell_models(note_models(self._config, stored.manifest), stored.manifest)
        self.running = job.start(self._config, self._flink_url, catalog=stored, state=state)

    def store(self) -> StoredModels:
        """Copy the models to the store, once: a job that is submitted again serves the same files.

        Raises:
            ModelStoreUnusable: The store cannot be written.
        """
        if self._stored is None:
            from anabranch.flink_job.model_repository.store import store_models  # noqa: PLC0415 - imports ONNX Runtime

            self._stored = store_models(self.catalog, self._config)
            self.catalog = self._stored.catalog
        return self._stored

    def await_serving(self, *, failures: int | None = None) -> None:
        """Wait until every task has loaded its models; tell failures and left-out models.

        Args:
            failures: After that many, cancels the job.

        Raises:
            JobFailed: The job ended.
        """
        while self.running.status() not in ENDED:
            if self.running.status() == "RUNNING" and self._tasks_run():
                self._end_transactions()
                # Process mode loads models at the first request.
                if execution_mode(self._config) == "thread":
                    await_reports(self._rest, self.running.job_id, _REPORTS_S, self._sleep)
                self._tell_left_out()
                return
            self._tell_failures(failures)
            self._sleep(_POLL_S)
        self.running.wait(self._sleep)

    def await_slots(self) -> None:
        """Wait until the cluster answers and has slots for the job."""
        rest, wanted = FlinkRest(self._flink_url or ""), slots_needed(self.catalog, self._config.job.parallelism)
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
            self.tell(f"The cluster at {self._flink_url} has lost the job: submitting it again.")
            self.await_slots()
            self.start()
            self.await_serving()
            self.tell(f"Job {self.running.job_id} serves.")
        self.running.wait(self._sleep)

    @property
    def _rest(self) -> FlinkRest:
        return FlinkRest(self.running.flink_url)

    def _tell_models(self, before: str, now: str) -> None:
        short, earlier = (url.rpartition("/")[2][:12] for url in (now, before))
        if before and before != now:
            self.tell(f"Models: manifest {short}; the last run of this name had {earlier}.")
        else:
            self.tell(f"Models: manifest {short}.")

    def _tell_failures(self, most: int | None) -> None:
        causes: list[str] = []
        with suppress(StackError):  # The JobManager starts.
            causes = [cause_of(trace) for trace in self._rest.failures(self.running.job_id)]
        for cause in causes[::-1]:
            self._tell_once(f"The job failed before it served, and Flink starts it again: {cause}")
        if most is not None and len(causes) >= most:
            self.running.cancel(self._sleep)
            raise JobFailed(f"the job failed {len(causes)} times before it served: {causes[0]}")

    def _tell_restart(self) -> None:
        with suppress(StackError):
            for trace in self._rest.failures(self.running.job_id, 1):
                self._tell_once(f"The job failed, and Flink starts it again: {cause_of(trace)}")

    def _tell_left_out(self) -> None:
        submitted = self.catalog.left_out
        self.left_out = [each for each in left_out_models(self._rest, self.running.job_id) if each not in submitted]
        for each in self.left_out:
            self._tell_once(left_out_line(each))

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def _await_end_or_loss(self, rest: FlinkRest) -> bool:
        """Return whether the job ended; False if the cluster does not know it."""
        was_up = True
        for look in count(1):
            try:
                states = {job.job_id: job.state for job in rest.jobs()}
            except StackError:
                if was_up:
                    self.tell(f"The JobManager at {self._flink_url} does not answer: waiting for it.")
                was_up = False
            else:
                was_up = True
                state = states.get(self.running.job_id)
                if state is None:
                    return False
                if state in ENDED:
                    return True
                if state != "RUNNING":
                    self._tell_restart()
                elif look % _LOOKS == 0:
                    with suppress(StackError):
                        self._tell_left_out()
            self._sleep(_WATCH_S)
        raise AssertionError

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
        # A look at the job itself would make Flink collect all metrics, and not again for 10 s.
        return any(job.job_id == self.running.job_id and job.all_tasks_run for job in self._rest.jobs())


def _started_from(state: SavedState) -> str:
    taken = datetime.fromtimestamp(state.taken_at_ms / 1000, UTC).astimezone()
    return f"Starts from the {state.label} of {taken:%Y-%m-%d %H:%M:%S}: {state.path}"
