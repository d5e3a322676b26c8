"""What a scenario is."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.harness.environment import BenchEnvironment
from bench.report.results import AnyRun, Ratio, Row, Target


@dataclass(frozen=True)
class Step:
    """One system's turn, not taken yet.

    Attributes:
        label: What the progress display says meanwhile.
        seconds: About how long it takes.
    """

    label: str
    take: Callable[[BenchEnvironment], Sequence[AnyRun]]
    seconds: float = 30.0


@dataclass(frozen=True)
class Conclusion:
    """What follows from all runs of a scenario.

    Attributes:
        limits: Figures that no system can pass, by name.
    """

    rows: list[Row]
    ratios: list[Ratio]
    targets: list[Target]
    limits: dict[str, float]


class Scenario(Protocol):
    """Something to measure."""

    name: str
    #: How it is measured, for whoever reads the result file.
    method: str

    def steps(self) -> Iterable[Step]:
        """All turns, in their order: every system once, then all again for the next round."""

    def conclude(self, runs: Sequence[AnyRun]) -> Conclusion:
        """Sums up; some turns may have failed."""
