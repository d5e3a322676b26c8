"""Decides which rounds of a scenario are worth their time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol


class TimedTurn(Protocol):
    """A turn of a scenario."""

    @property
    def seconds(self) -> float:
        """Estimated duration."""

    @property
    def repeat(self) -> int:
        """Round, from 0."""


class RoundBudget:
    """The rounds of a scenario that has a limited time.

    A first round is always taken. A later one begins if it ends in time, at the pace until then, and is of use; with
    one that does not begin, all later ones are left out.

    Args:
        turns: All turns, in their order.
        limit_s: Time for all of them.
    """

    def __init__(self, turns: Sequence[TimedTurn], limit_s: float) -> None:
        self._turns = turns
        self._limit_s = limit_s
        self._taken_s = 0.0
        self._leaves_out = False

    def takes(self, index: int, spent_s: float, is_of_use: Callable[[], bool]) -> bool:
        """Tell whether to take a turn; to be called for each one, in order.

        Args:
            spent_s: Time since the first turn began.
            is_of_use: Called once for each later round that would end in time.
        """
        turn = self._turns[index]
        if turn.repeat == 0:
            self._leaves_out = False
        elif turn.repeat != self._turns[index - 1].repeat and not self._leaves_out:
            self._leaves_out = not (self._ends_in_time(index, spent_s) and is_of_use())
        if not self._leaves_out:
            self._taken_s += turn.seconds
        return not self._leaves_out

    def _ends_in_time(self, index: int, spent_s: float) -> bool:
        pace = spent_s / self._taken_s if self._taken_s else 1.0
        needed_s, is_this_round = 0.0, True
        for turn in self._turns[index:]:
            is_this_round &= turn.repeat == self._turns[index].repeat
            if is_this_round or turn.repeat == 0:
                needed_s += turn.seconds
        return spent_s + pace * needed_s <= self._limit_s


def first_round_s(turns: Iterable[TimedTurn]) -> float:
    """Return the estimated time of the turns that are always taken."""
    return sum(turn.seconds for turn in turns if turn.repeat == 0)
