"""A running system, and one load after the other that it is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import Moment, core_s_per_1000, other_cores
from bench.harness.analysis.measures import Floats, Tally, first_answers, tally
from bench.harness.environment import BenchEnvironment, Stalled, Topics
from bench.harness.response_log import ResponseLog
from bench.harness.schedule import poisson_offsets_ns
from bench.systems.registry import System
from bench.workloads.workload import Workload


@dataclass(frozen=True)
class LoadRun:
    """One load and its answers.

    Attributes:
        scheduled_ns: Scheduled send times; `sent_ns` are actual.
        before: Processor time before the first request.
        after: Processor time after the last answer.
    """

    workload: Workload
    first_id: int
    scheduled_ns: npt.NDArray[np.int64]
    sent_ns: npt.NDArray[np.int64]
    answers: ResponseLog
    before: Moment
    after: Moment

    @property
    def count(self) -> int:
        """Number of requests."""
        return len(self.scheduled_ns)

    @property
    def tally(self) -> Tally:
        """Counts of right, wrong, missing and repeated answers."""
        return tally(self.answers, self.first_id, self.count, self.workload.tolerance)

    @property
    def firsts(self) -> npt.NDArray[np.int64]:
        """Index of each request's first answer, or -1."""
        return first_answers(self.answers, self.first_id, self.count)

    def latencies(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Latency in ms and scheduled time in ns of every answered request."""
        answered = self.firsts >= 0
        at_ns = self.scheduled_ns[answered]
        return (self.answers.received_ns[self.firsts[answered]] - at_ns) / 1e6, at_ns

    @property
    def rate_per_s(self) -> float:
        """Answers a second, from the first request sent to the last answer stored by the broker."""
        spent_ms = int(self.answers.appended_ms.max()) - int(self.sent_ns[0]) // 1_000_000
        return self.count * 1000 / max(spent_ms, 1)

    @property
    def core_s_per_1000(self) -> dict[str, float]:
        """Core-seconds per 1,000 requests, by part."""
        return core_s_per_1000(self.before, self.after, self.count)

    @property
    def other_cores(self) -> float:
        """Cores that processes outside the benchmark kept busy."""
        return other_cores(self.before, self.after)

    @property
    def generator_p99_ms(self) -> float:
        """Delay of the generator; it is part of each latency."""
        return round(float(np.percentile(self.sent_ns - self.scheduled_ns, 99)) / 1e6, 3)


class RunningSystem:
    """A system that answers.

    Args:
        sent: Number of requests sent so far; the next id.
    """

    def __init__(self, environment: BenchEnvironment, topics: Topics, process: LocalProcess, sent: int) -> None:
        self._environment = environment
        self._topics = topics
        self._process = process
        self._sent = sent

    def offer(self, workload: Workload, rate_per_s: float, seconds: float, seed: int) -> LoadRun:
        """Send a Poisson load and wait for its answers."""
        count = max(1, round(rate_per_s * seconds))
        return self.offer_by(workload, poisson_offsets_ns(rate_per_s, count, seed))

    def offer_by(self, workload: Workload, offsets_ns: npt.NDArray[np.int64]) -> LoadRun:
        """Send a load by a schedule and wait for its answers."""
        return self._offer(workload, len(offsets_ns), offsets_ns)

    def burst(self, workload: Workload, count: int) -> LoadRun:
        """Send requests at full speed and wait for their answers."""
        return self._offer(workload, count, None)

    def _offer(self, workload: Workload, count: int, offsets_ns: npt.NDArray[np.int64] | None) -> LoadRun:
        environment, topics, first_id = self._environment, self._topics, self._sent
        account = environment.account(self._process)
        start = environment.end_offsets(topics.responses)
        # Generator and reader start at once; both are idle until `send`.
        with (
            environment.generating(offsets_ns, topics.requests, workload, count, first_id) as generator,
            environment.reading(topics.responses, workload, count, start) as reader,
        ):
            before = account.look()
            scheduled_ns, sent_ns = generator.send()
            self._sent += count
            environment.await_answers(topics.responses, self._sent, self._process)
            after = account.look()
            answers = reader.finish()
        if not len(answers.ids):
            raise Stalled(f"0 of {count} requests were answered")
        return LoadRun(workload, first_id, scheduled_ns, sent_ns, answers, before, after)


@contextmanager
def in_service(environment: BenchEnvironment, system: System, workload: Workload) -> Iterator[RunningSystem]:
    """Start a system and yield it after its first answer; delete its topics after the block."""
    topics = environment.topics()
    try:
        with environment.serving(system, topics) as process:
            environment.send(topics.requests, workload, 1, 0, None)
            environment.await_answers(topics.responses, 1, process)
            yield RunningSystem(environment, topics, process, 1)
    finally:
        environment.drop(topics.requests, topics.responses, topics.errors)
