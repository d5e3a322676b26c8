"""LoadBalancer: selection of the batches that leave a late task."""

from itertools import groupby

import pytest

from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer, OtherTasks
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.records import NO_DEADLINE_MS

NOW_MS = 1_000_000.0
BEHIND_MS = 50.0
POLICY = SchedulingPolicy(offload_backlog_ms=BEHIND_MS)


def batch(run_ms: float = 40.0, size_bytes: int = 1_000, deadline_ms: int = NO_DEADLINE_MS) -> list[Request]:
    return [Request(b"", size_bytes, 1, 5, deadline_ms, cost_ms=run_ms)]


def decisions(offloading: LoadBalancer, count: int, waited_ms: float | None = None, start_ms: float = NOW_MS) -> str:
    """A number of decisions: `r` for a batch of 40 ms that runs here, `l` for one that leaves."""
    made, now_ms = "", start_ms
    for _ in range(count):
        if offloading.is_due(1_000.0, now_ms):
            offloading.note_given(batch(), now_ms)
            made += "l"
            if waited_ms is not None:
                now_ms += waited_ms
                offloading.note_wait(waited_ms, now_ms)
        else:
            offloading.note_run()
            made += "r"
            now_ms += 40.0
    return made


@pytest.mark.parametrize("tasks", [2, 5])
def test_balancer_late_task_shares_batches_evenly(tasks: int) -> None:
    round_of_all = "l" * (tasks - 1) + "r"
    assert decisions(LoadBalancer(POLICY, tasks), 3 * tasks) == 3 * round_of_all


def test_balancer_without_learning_gives_most_batches() -> None:
    assert decisions(LoadBalancer(POLICY, 2, learns=False), 18) == 2 * "llllllllr"


def test_balancer_gives_while_another_task_is_idle() -> None:
    others = Credits(3, 3, 0)
    balancer = LoadBalancer(POLICY, 3, OtherTasks(others, own=0))
    sent = []
    while balancer.is_due(1_000.0, NOW_MS):
        sent.append(others.send(NOW_MS, 0))
    assert [reader for _, reader in sent] == [1, 2]
    others.returned(*sent[0], 40.0, 40.0, NOW_MS + 40)
    assert [balancer.is_due(backlog_ms, NOW_MS + 40) for backlog_ms in (BEHIND_MS, 1_000.0)] == [False, True]


def test_balancer_keeps_batches_from_busy_tasks() -> None:
    others = Credits(2, 2, 0)
    balancer = LoadBalancer(POLICY, 2, OtherTasks(others, own=0))
    others.returned(*others.send(NOW_MS, 0), 40.0, 40.0, NOW_MS + 540)
    assert not balancer.is_due(1_000.0, NOW_MS + 540)
    assert balancer.is_due(1_000.0, NOW_MS + 1_100)


def test_balancer_below_the_backlog_keeps_everything() -> None:
    assert not LoadBalancer(POLICY, 2).is_due(BEHIND_MS, NOW_MS)


def test_balancer_window_grows_up_to_its_maximum() -> None:
    made = decisions(LoadBalancer(POLICY, 2), 300, waited_ms=0.1)
    runs = [len(list(group)) for kind, group in groupby(made) if kind == "l"]
    assert runs[0] == 1
    assert runs[-2] == 8


def test_balancer_window_shrinks_while_blocked() -> None:
    kept = decisions(LoadBalancer(POLICY, 2), 300, waited_ms=40.0)
    assert kept[-100:].count("l") == 20


def test_balancer_full_exchange_stops_offloading() -> None:
    assert decisions(LoadBalancer(POLICY, 2), 500, waited_ms=90.0).count("l") < 25


def test_balancer_recovers_after_a_full_exchange() -> None:
    offloading = LoadBalancer(POLICY, 2)
    decisions(offloading, 200, waited_ms=90.0)
    assert decisions(offloading, 300, waited_ms=0.1, start_ms=NOW_MS + 60_000)[-100:].count("l") > 80


@pytest.mark.parametrize(
    ("run_ms", "size_bytes", "is_worth"),
    [(1.9, 1_000, False), (2.1, 1_000, True), (2.1, 200_000, False), (100.0, 20_000_000, False)],
)
def test_balancer_cheap_batch_is_not_worth_its_transfer(run_ms: float, size_bytes: int, *, is_worth: bool) -> None:
    assert LoadBalancer(POLICY, 2).is_worth(batch(run_ms, size_bytes), 1_000.0, NOW_MS) is is_worth


def test_balancer_without_worthy_batch_pauses() -> None:
    offloading = LoadBalancer(POLICY, 2)
    offloading.note_given([], NOW_MS)
    assert not offloading.is_due(1_000.0, NOW_MS + 9)
    assert offloading.is_due(1_000.0, NOW_MS + 10)


def test_balancer_keeps_the_last_batches() -> None:
    assert not LoadBalancer(POLICY, 2).is_worth(batch(100.0), 100.0, NOW_MS)
    assert LoadBalancer(POLICY, 2).is_worth(batch(100.0), 151.0, NOW_MS)


@pytest.mark.parametrize(("left_ms", "is_worth"), [(139, False), (141, True)])
def test_balancer_batch_near_its_deadline_stays(left_ms: int, *, is_worth: bool) -> None:
    hurried = batch() + batch(0.0, deadline_ms=int(NOW_MS) + left_ms)
    assert LoadBalancer(POLICY, 2).is_worth(hurried, 1_000.0, NOW_MS) is is_worth
