"""Requests stored in a topic before the systems start."""

from collections.abc import Sequence
from contextlib import ExitStack

from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import core_s_per_1000, other_cores
from bench.harness.analysis.measures import rate_per_s, tally
from bench.harness.environment import BenchEnvironment, Stalled
from bench.report.results import Run
from bench.systems.registry import System
from bench.workloads.workload import Workload

#: A generator beside a system lasts long enough for a much slower one.
_TIMES_SLOWER, _START_S = 4, 5.0


class ThroughputRun(Run, frozen=True, kw_only=True):
    """A run at full speed over stored requests."""

    warm_up_requests: int
    rate_per_s: float


class Preloaded:
    """The records of one workload.

    Args:
        warm_up: Requests before those that are measured.
    """

    def __init__(self, workload: Workload, requests: int, warm_up: int) -> None:
        self.workload = workload
        self._warm_up = warm_up
        self._total = warm_up + requests
        self._topic: str | None = None

    def serve(
        self,
        system: System,
        repeat: int,
        environment: BenchEnvironment,
        beside_per_s: float | None = None,
        helpers: Sequence[LocalProcess] = (),
    ) -> ThroughputRun:
        """Return a system's turn, from its start to the last answer.

        Args:
            beside_per_s: Rate of a generator's load on a topic without reader.
            helpers: Other processes of the system.
        """
        if self._topic is None:
            topic = environment.topics().requests
            environment.send(topic, self.workload, self._total, 0, None)
            self._topic = topic
        topics = environment.topics(self._topic)
        skipped = self._warm_up
        with environment.serving(system, topics) as process, ExitStack() as load:
            account = environment.account(process, *helpers)
            if beside_per_s:
                seconds = _START_S + _TIMES_SLOWER * self._total / beside_per_s
                begin = load.enter_context(environment.generating_beside(self.workload, beside_per_s, seconds))
            first = environment.await_answers(topics.responses, self._warm_up, process)
            if beside_per_s:
                begin()
                skipped = first = sum(environment.end_offsets(topics.responses))
                if self._total - skipped < (self._total - self._warm_up) / 2:
                    raise Stalled(f"only {self._total - skipped} requests were left when the generator began")
            before = account.look()
            last = environment.await_answers(topics.responses, self._total, process)
            after = account.look()
        answers = environment.read(topics.responses, self.workload, self._total)
        environment.drop(topics.responses, topics.errors)
        return ThroughputRun(
            system=system.name,
            workload=self.workload.name,
            repeat=repeat,
            tally=tally(answers, 0, self._total, self.workload.tolerance),
            core_s_per_1000=core_s_per_1000(before, after, last - first),
            other_cores=other_cores(before, after),
            warm_up_requests=skipped,
            rate_per_s=round(rate_per_s(answers.appended_ms, skipped), 1),
        )

    def drop(self, environment: BenchEnvironment) -> None:
        """Delete the records."""
        if self._topic is not None:
            environment.drop(self._topic)
            self._topic = None
