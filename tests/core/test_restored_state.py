"""A job restored from any of its states, with the timers in it, answers all queued requests: no new one has to come."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from random import Random
from typing import Any

import pytest

from anabranch.operators.core.scheduling.batch_queue import BatchQueue
from anabranch.operators.core.scheduling.task_loop import TaskLoop
from tests.core.models import catalog
from tests.planted import mutated
from tests.simulator import Faults, Simulation, State, check, some_batching, some_requests

NO_CRASH = Faults(crash=0)
MODELS = ("rows", "pairs", "whole", "cut", "sums", "long", "less", "more")
SEEDS = range(8)
STEPS = 60


class Restored(Simulation):
    """Another job, of any number of tasks, that starts from a state and reads nothing."""

    def __init__(self, job: Simulation, state: State, seed: int) -> None:
        super().__init__(job.sent[: state.offset], job.catalog, seed, NO_CRASH)
        self.state, self.now_ms = state, job.now_ms
        self.visible, self.seen = list(job.visible), list(job.seen)
        for name, fate in self.fates.items():
            fate.lost |= job.fates[name].lost
            fate.may_be_refused |= job.fates[name].may_be_refused

    @property
    def keys(self) -> set[int]:
        """The own keys of its tasks."""
        return {task.key for task in self._tasks}

    def run(self) -> None:
        """Runs until nothing moves and no timer is left."""
        while self.state.flying or self.state.queue_timers or self.state.window_timers:
            if not self.state.flying:
                timers = [*[at_ms for at_ms, _ in self.state.queue_timers], *self.state.window_timers.values()]
                self.now_ms = max(self.now_ms, min(timers))
            self._random.choice((self._fly, self._fire))()
            self.now_ms += self._random.choice((0.0, 0.3))


def states_of(seed: int) -> Iterator[tuple[Simulation, State, State]]:
    """A run after each step that changed its queues, and its states after and before that step."""
    random = Random(seed)
    served = catalog(by_model={model: some_batching(random) for model in MODELS}, ensembles=True)
    job = Simulation(some_requests(random, 20), served, seed, NO_CRASH)
    before = deepcopy(job.state)
    for _ in range(STEPS):
        job._step()
        if (job.state.waiting, job.state.queue_timers) != (before.waiting, before.queue_timers):
            state = deepcopy(job.state)
            yield job, deepcopy(state), before
            before = state


def check_all_states(seeds: range, *, drops_new_timers: bool = False) -> Counter[str]:
    """Checks every state of some runs; counts the states with queued requests of each kind."""
    queued: Counter[str] = Counter()
    for seed in seeds:
        for number, (job, state, before) in enumerate(states_of(seed)):
            if drops_new_timers:
                state.queue_timers &= before.queue_timers
            other = Restored(job, state, 1000 * seed + number)
            keys = {key for key, waiting in state.waiting.items() if waiting}
            queued["own"] += not keys.isdisjoint(other.keys)
            queued["foreign"] += not keys <= other.keys
            queued["begun"] += any(number < 0 for key in keys for number in state.waiting[key])
            other.run()
            check(other)
    return queued


@pytest.mark.slow
def test_job_restored_from_any_state_needs_no_new_request() -> None:
    queued = check_all_states(SEEDS)
    assert min(queued[kind] for kind in ("own", "foreign", "begun")) > 10, queued


def test_job_restored_without_the_newest_timers_is_caught() -> None:
    """PyFlink's process mode takes checkpoints without the timers of the last bundle."""
    with pytest.raises(AssertionError, match="requests still wait"):
        check_all_states(SEEDS, drops_new_timers=True)


PLANTED: dict[str, AbstractContextManager[Any]] = {
    "restored timer is taken for a superseded one": mutated(TaskLoop, "on_timer", "not in (None, at_ms)", "!= at_ms"),
    "timer of a frame is forgotten": mutated(TaskLoop, "_next_wake_up", "if due_ms is None:", "if not at_once:"),
    "restored queue has no further timer": mutated(
        TaskLoop, "_continue_foreign", "departed, foreign.wakes_at_ms)", "departed, None)"
    ),
    "timer of a restored queue is forgotten": mutated(
        TaskLoop, "on_timer", "yield from self._settle_own(own, at_once=is_quiet)", "pass"
    ),
    "blocked requests are looked at too late": mutated(
        BatchQueue, "_looks_again_at_ms", "self._look_again_ms if", "1e9 if"
    ),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_job_planted_lost_timer_is_caught(defect: str) -> None:
    with PLANTED[defect], pytest.raises(AssertionError):
        check_all_states(SEEDS)
