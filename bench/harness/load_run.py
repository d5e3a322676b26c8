"""A system in service, and one load after the other that is offered to it."""

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
    """What became of one load.

    Attributes:
        scheduled_ns: When each request should have been sent, and `sent_ns` when it was: Unix time.
        after: What was used once the last answer was there.
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
        """How many requests it had."""
        return len(self.scheduled_ns)

    @property
    def tally(self) -> Tally:
        """What became of them."""
        return tally(self.answers, self.first_id, self.count, self.workload.tolerance)

    @property
    def firsts(self) -> npt.NDArray[np.int64]:
        """The place of each request's first answer, or -1."""
        return first_answers(self.answers, self.first_id, self.count)

    def spent_ms(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The latency of every request that was answered, and when each was scheduled."""
        there = self.firsts >= 0
        at_ns = self.scheduled_ns[there]
        return (self.answers.received_ns[self.firsts[there]] - at_ns) / 1e6, at_ns

    @property
    def core_s_per_1000(self) -> dict[str, float]:
        """Core-seconds for each 1,000 requests, by part."""
        return core_s_per_1000(self.before, self.after, self.count)

    @property
    def other_cores(self) -> float:
        """Cores that something outside the benchmark kept busy."""
        return other_cores(self.before, self.after)

    @property
    def generator_p99_ms(self) -> float:
        """By how much the generator was late; that is part of latency, for no request asked for it."""
        return round(float(np.percentile(self.sent_ns - self.scheduled_ns, 99)) / 1e6, 3)


class RunningSystem:
    """A system that answers.

    Args:
        sent: How many requests it has had.
    """

    def __init__(self, environment: BenchEnvironment, topics: Topics, process: LocalProcess, sent: int) -> None:
        self._environment = environment
        self._topics = topics
        self._process = process
        self._sent = sent

    def offer(self, workload: Workload, rate_per_s: float, seconds: float, seed: int) -> LoadRun:
        """A Poisson load."""
        count = max(1, round(rate_per_s * seconds))
        return self.offer_by(workload, poisson_offsets_ns(rate_per_s, count, seed))

    def burst(self, workload: Workload, count: int) -> float:
        """As many requests as the broker takes at once; returns how many a second were answered, from the first on."""
        offered = self._offer(workload, count, None)
        spent_ms = int(offered.answers.appended_ms.max()) - int(offered.sent_ns[0]) // 1_000_000
        return count * 1000 / max(spent_ms, 1)

    def offer_by(self, workload: Workload, offsets_ns: npt.NDArray[np.int64]) -> LoadRun:
        """A load by a schedule."""
        return self._offer(workload, len(offsets_ns), offsets_ns)

    def _offer(self, workload: Workload, count: int, offsets_ns: npt.NDArray[np.int64] | None) -> LoadRun:
        environment, topics, first_id = self._environment, self._topics, self._sent
        account = environment.account(self._process)
        start = environment.end_offsets(topics.responses)
        # Both processes start at once: neither does anything yet.
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
            raise Stalled(f"none of {count} requests was answered")
        return LoadRun(workload, first_id, scheduled_ns, sent_ns, answers, before, after)


@contextmanager
def in_service(environment: BenchEnvironment, system: System, workload: Workload) -> Iterator[RunningSystem]:
    """A system that has answered its first request; its topics are gone after the block."""
    topics = environment.topics()
    try:
        with environment.serving(system, topics) as process:
            environment.send(topics.requests, workload, 1, 0, None)
            environment.await_answers(topics.responses, 1, process)
            yield RunningSystem(environment, topics, process, 1)
    finally:
        environment.drop(topics.requests, topics.responses, topics.errors)
