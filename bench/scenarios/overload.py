"""More than can be served: Magika in three priorities, at twice and at three times the capacity."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import monotonic

import numpy as np

from anabranch.stack.processes import LocalProcess
from bench.accounting import core_s_per_1000, other_cores
from bench.arena import Arena, Topics
from bench.measures import Floats, first_answers, rate_per_s, tally
from bench.results import AnyRun, OverloadRun, Target, keys_of, rows_of
from bench.scenarios.base import Conclusion, Step
from bench.scenarios.memory import Sampler
from bench.settings import Settings
from bench.subjects import anabranch
from bench.workloads import Workload

#: Of the workload's requests, in turn.
PRIORITIES = (1, 5, 9)
_LOADS = (0.25, 2.0, 3.0)
_GOODPUT, _TAIL = "goodput / peak", "p99 of priority 1 / unloaded"


class Overload:
    """This project alone, with `overload = "refuse"`: no peer refuses by urgency."""

    name = "overload"
    method = (
        "Magika on real files, a third of the requests in each of the priorities 1, 5 and 9. Peak: requests that were "
        'there before, answered as fast as possible. Then, with `overload = "refuse"`, an open-loop Poisson load of a '
        "quarter, twice and three times that peak. Goodput: right answers a second while the load lasts. Every request "
        "must get its right answer or the error `overloaded`, once. Drain: from the last request to the last answer. "
        "Latency as in the latency scenario, of what was served."
    )

    def __init__(self, settings: Settings, magika: Workload) -> None:
        self._settings = settings
        self._workload = magika
        self._waiting = anabranch(settings.modes[0])
        self._refusing = replace(self._waiting, overload="refuse")

    def steps(self) -> Iterator[Step]:
        """Peak and all loads in one round."""
        yield Step("overload: peak, then a quarter, twice and three times of it", self._run)

    def conclude(self, runs: Sequence[AnyRun]) -> Conclusion:
        """Goodput beside peak, and the urgent beside themselves without load."""
        ours = [run for run in runs if isinstance(run, OverloadRun)]
        metrics = {
            "rate_per_s": [run.goodput_per_s for run in ours],
            **{f"p99_ms_{priority}": [run.p99_ms.get(f"{priority}", 0.0) for run in ours] for priority in PRIORITIES},
            "refused_share": [run.refused / run.tally.requests for run in ours],
            "drain_s": [run.drain_s for run in ours],
            "peak_mb": [run.peak_mb for run in ours],
        }
        by_load = {run.load: run for run in ours}
        targets = []
        if len(by_load) == len(_LOADS):
            calm, double, triple = (by_load[load] for load in _LOADS)
            targets = [
                _target(triple, _GOODPUT, triple.goodput_per_s / triple.peak_per_s, ">=", 0.9),
                _target(double, _TAIL, double.p99_ms["1"] / calm.p99_ms["1"], "<=", 2.0),
            ]
        return Conclusion(rows_of(ours, metrics, keys_of(ours)), [], targets, {})

    def _run(self, arena: Arena) -> list[OverloadRun]:
        peak_per_s = self._peak(arena)
        topics = arena.topics()
        runs = []
        with arena.serving(self._refusing, topics) as process:
            arena.send(topics.requests, self._workload, 1, 0, None)
            arena.await_answers(topics.responses, 1, process)
            sent = 1
            for load in (_LOADS[0], *_LOADS):  # the first one warms up
                run = self._offer(arena, topics, process, sent, load, peak_per_s)
                sent += run.tally.requests
                runs.append(run)
        return runs[1:]

    def _peak(self, arena: Arena) -> float:
        topics, count = arena.topics(), self._settings.overload_peak_requests
        arena.send(topics.requests, self._workload, count, 0, None)
        with arena.serving(self._waiting, topics) as process:
            arena.await_answers(topics.responses, count, process)
        answers = arena.read(topics.responses, self._workload, count)
        return rate_per_s(answers.appended_ms, count // 4)

    def _offer(
        self, arena: Arena, topics: Topics, process: LocalProcess, first_id: int, load: float, peak_per_s: float
    ) -> OverloadRun:
        seconds = self._settings.overload_seconds * (5 if load == _LOADS[-1] else 1)
        rate = load * peak_per_s
        count = round(rate * seconds / len(PRIORITIES)) * len(PRIORITIES)
        account = arena.account(process)
        with (
            arena.reading(topics.responses, self._workload, count, arena.end_offsets(topics.responses)) as reader,
            Sampler(arena, process, topics.responses, first_id) as sampler,
        ):
            before = account.look()
            scheduled_ns = arena.send(topics.requests, self._workload, count, first_id, rate, seed=round(load * 100))
            sent_s = monotonic()
            arena.await_answers(topics.responses, first_id + count, process)
            drain_s = monotonic() - sent_s
            after = account.look()
            answers = reader.finish()
        firsts = first_answers(answers, first_id, count)
        there = firsts >= 0
        refused, received_ns = np.zeros(count, bool), np.zeros(count, np.int64)
        refused[there] = answers.refused[firsts[there]]
        received_ns[there] = answers.received_ns[firsts[there]]
        served = there & ~refused
        spent_ms: Floats = (received_ns - scheduled_ns) / 1e6
        in_time = served & (received_ns <= scheduled_ns[-1])
        classes = (first_id + np.arange(count)) % len(PRIORITIES)
        by_class = {f"{priority}": served & (classes == place) for place, priority in enumerate(PRIORITIES)}
        span_s = float(scheduled_ns[-1] - scheduled_ns[0]) / 1e9
        return OverloadRun(
            subject=f"{self._refusing.name}, {load:g} x peak",
            workload=f"{self._workload.name}, 3 priorities",
            repeat=0,
            tally=tally(answers, first_id, count),
            core_s_per_1000=core_s_per_1000(before, after, count),
            other_cores=other_cores(before, after),
            load=load,
            seconds=seconds,
            offered_per_s=round(count / span_s, 1),
            peak_per_s=round(float(peak_per_s), 1),
            goodput_per_s=round(float(in_time.sum() / span_s), 1),
            refused=int(refused.sum()),
            served_share={
                name: round(float(mask.sum() * len(PRIORITIES) / count), 4) for name, mask in by_class.items()
            },
            p50_ms={name: _percentile(spent_ms[mask], 50) for name, mask in by_class.items()},
            p99_ms={name: _percentile(spent_ms[mask], 99) for name, mask in by_class.items()},
            drain_s=round(drain_s, 2),
            peak_mb=round(max(sampler.resident_mb), 1),
            resident_mb=[round(value, 1) for value in sampler.resident_mb],
        )


def _percentile(values_ms: Floats, percentile: float) -> float:
    return round(float(np.percentile(values_ms, percentile)), 2) if len(values_ms) else 0.0


def _target(run: OverloadRun, metric: str, value: float, relation: str, limit: float) -> Target:
    met = value >= limit if relation == ">=" else value <= limit
    return Target(
        workload=run.workload,
        subject=run.subject,
        metric=metric,
        value=round(value, 3),
        relation=">=" if relation == ">=" else "<=",
        limit=limit,
        met=met and run.tally.is_clean,
    )
