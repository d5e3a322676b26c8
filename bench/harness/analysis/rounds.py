"""Decides for which systems another round is worth its time."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.analysis.ratio_interval import RatioInterval


@dataclass(frozen=True)
class Comparison:
    """A ratio with a limit.

    Attributes:
        limit: None for a ratio without target.
    """

    workload: str
    system: str
    peer: str
    limit: float | None


class Rounds:
    """Values of some comparisons, round by round.

    Args:
        least: Rounds that all systems have.
        half_width: An interval as narrow as this share of its ratio needs no more rounds.
    """

    def __init__(self, comparisons: Sequence[Comparison], least: int, half_width: float) -> None:
        self._comparisons = comparisons
        self._least = least
        self._half_width = half_width
        self._values: dict[tuple[str, str], dict[int, float]] = {}

    def note(self, workload: str, system: str, repeat: int, value: float) -> None:
        """Keep a value."""
        self._values.setdefault((workload, system), {})[repeat] = value

    def needs(self, workload: str, system: str, repeat: int) -> bool:
        """Tell whether a system's turn in a round helps any of its comparisons."""
        if repeat < self._least:
            return True
        return any(
            self._is_open(each, repeat)
            for each in self._comparisons
            if each.workload == workload and system in (each.system, each.peer)
        )

    def _is_open(self, each: Comparison, repeat: int) -> bool:
        if each.limit is None:
            return False
        ours, theirs = (self._values.get((each.workload, name), {}) for name in (each.system, each.peer))
        # The turn of a round decides nothing about the peer's turn in the same one.
        both = sorted(number for number in ours.keys() & theirs.keys() if number < repeat)
        if len(both) < 2:
            return True
        found = RatioInterval.of([ours[number] for number in both], [theirs[number] for number in both])
        return not found.decides(each.limit) and found.half_width > self._half_width
