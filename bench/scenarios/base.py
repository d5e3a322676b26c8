"""Parts of a scenario, and the registry of scenarios.

A scenario is one module of this package. Its `make` function is registered by the decorator `scenario`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from matplotlib.figure import Figure

from bench import scenarios as package
from bench.harness.environment import BenchEnvironment
from bench.harness.settings import Settings
from bench.report.results import Ratio, Row, Run, ScenarioResult, Target
from bench.workloads.repositories import Repositories


@dataclass(frozen=True)
class Turn:
    """One system's turn.

    Attributes:
        label: Text of the progress display.
        seconds: Estimated duration.
        repeat: Round, from 0; later ones are left out if time is short.
    """

    label: str
    take: Callable[[BenchEnvironment], Sequence[Run]]
    seconds: float = 30.0
    repeat: int = 0


@dataclass(frozen=True)
class Conclusion:
    """The result of all runs of a scenario.

    Attributes:
        limits: Figures that no system can exceed, by name.
    """

    rows: list[Row]
    ratios: list[Ratio]
    targets: list[Target]
    limits: dict[str, float]


class Scenario(Protocol):
    """A measurement of several systems or loads."""

    name: str
    #: The method of measurement, for readers of the results.
    method: str

    def steps(self) -> Iterable[Turn]:
        """All turns in their order: each system once, then again for the next round."""

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Sum up the runs; some turns may have failed."""


#: A scenario, and the model repository that its systems load.
Made = tuple[Scenario, Path]
S = TypeVar("S", bound=Settings)
#: Draws a result; None where an interrupted run left nothing to draw.
Draw = Callable[[ScenarioResult], Figure | None]


@dataclass(frozen=True)
class RegisteredScenario:
    """A scenario's entry in the registry.

    Attributes:
        full: Settings of a full run.
        quick: Settings of `--quick`.
    """

    make: Callable[[Any, Repositories], Made]
    full: Settings
    quick: Settings
    draw: Draw | None


_REGISTERED: dict[str, RegisteredScenario] = {}


def scenario(
    name: str, *, full: S, quick: S, draw: Draw | None = None
) -> Callable[[Callable[[S, Repositories], Made]], Callable[[S, Repositories], Made]]:
    """Register a function that makes a scenario.

    Raises:
        ValueError: Another scenario has the name.
    """

    def register(make: Callable[[S, Repositories], Made]) -> Callable[[S, Repositories], Made]:
        if name in _REGISTERED:
            raise ValueError(f"scenario {name!r} is registered twice: give one of them another name")
        _REGISTERED[name] = RegisteredScenario(make, full, quick, draw)
        return make

    return register


def all_scenarios() -> dict[str, RegisteredScenario]:
    """Import each module of this package, and return the registered scenarios in order of their names."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_REGISTERED.items()))
