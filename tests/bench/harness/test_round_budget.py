"""RoundBudget: which rounds of a scenario are taken."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.harness.analysis.round_budget import RoundBudget, first_round_s


class Step(NamedTuple):
    seconds: float
    repeat: int


ROUNDS = [Step(10.0, repeat) for repeat in range(4) for _ in range(2)]


def taken(
    steps: Sequence[Step], limit_s: float, pace: float = 1.0, is_of_use: Callable[[], bool] = lambda: True
) -> list[int]:
    """The rounds of the steps that are taken, each of which takes `pace` times its estimate."""
    budget, spent_s, found = RoundBudget(steps, limit_s), 0.0, []
    for index, step in enumerate(steps):
        if budget.takes(index, spent_s, is_of_use):
            spent_s += pace * step.seconds
            found.append(step.repeat)
    return found


def test_budget_takes_whole_rounds_while_they_end_in_time() -> None:
    assert taken(ROUNDS, 80.0) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert taken(ROUNDS, 79.0) == [0, 0, 1, 1, 2, 2]
    assert taken(ROUNDS, 40.0) == [0, 0, 1, 1]


def test_budget_takes_the_first_round_in_any_case() -> None:
    assert taken(ROUNDS, 1.0) == [0, 0]
    assert first_round_s(ROUNDS) == 20.0


def test_budget_of_slow_turns_has_fewer_rounds() -> None:
    assert taken(ROUNDS, 80.0, pace=2.0) == [0, 0, 1, 1]
    assert taken(ROUNDS, 40.0, pace=0.5) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_budget_keeps_time_for_first_rounds_to_come() -> None:
    steps = [*ROUNDS, Step(30.0, 0)]
    assert taken(steps, 70.0) == [0, 0, 1, 1, 0]
    cases = [*ROUNDS, *ROUNDS]
    assert taken(cases, 40.0) == [0, 0, 0, 0]
    assert taken(cases, 60.0) == [0, 0, 1, 1, 0, 0]


def test_budget_ends_once_a_round_is_of_no_use() -> None:
    answers = iter([True, False])
    assert taken(ROUNDS, 1000.0, is_of_use=lambda: next(answers)) == [0, 0, 1, 1]
