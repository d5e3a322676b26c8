"""Before and after: two checkouts of this project in alternation, on one broker, with the same requests.

    python -m bench compare --base ../before --quick

Each round starts the job of both checkouts and sends the same loads; the order alternates. A figure has changed where
the 95 % interval of its ratio leaves 1 out.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.stack.errors import StackError
from bench.harness.analysis.ratio_interval import RatioInterval
from bench.harness.environment import BenchEnvironment, Stalled
from bench.harness.load_run import LoadRun, RunningSystem, in_service
from bench.systems.registry import System
from bench.workloads.models import FFNN, make_repository
from bench.workloads.workload import Workload, ffnn_rows, magika_files

THROUGHPUT, LATENCY = "throughput", "latency"
SCENARIOS = (THROUGHPUT, LATENCY)
WORKLOADS = (f"{FFNN}-1", f"{FFNN}-32", MAGIKA)
#: Figures for which more is better.
_MORE_IS_BETTER = frozenset({"requests/s"})

#: By workload and figure, one value a round.
Figures = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class ComparedLoad:
    """The loads of one workload in each turn.

    Attributes:
        warm_up: Requests at once that are not measured.
        burst: Requests at once for throughput.
        rate_per_s: Fixed rate for latency.
    """

    workload: Workload
    warm_up: int
    burst: int
    rate_per_s: float

    def scaled(self, factor: float) -> "ComparedLoad":
        """Return the same with more requests."""
        return ComparedLoad(self.workload, round(self.warm_up * factor), round(self.burst * factor), self.rate_per_s)


def main(arguments: Sequence[str]) -> None:
    """Run the comparison; exit code 1 if a job failed or answered wrong, 2 if a figure is worse."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    sides = [System("base", checkout=str(options.base)), System("change", checkout=str(options.change))]
    with tempfile.TemporaryDirectory(prefix="anabranch-compare-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        repository = make_repository(folder / "models")
        chosen = [load for name, load in loads_of(repository).items() if name in options.workloads]
        loads = [load if options.quick else load.scaled(4) for load in chosen]
        seconds = 4.0 if options.quick else 15.0

        def turn(side: System, number: int) -> Figures:
            console.print(f"round {number + 1}: {side.kind}, {side.checkout}", highlight=False, markup=False)
            with in_service(environment, side, loads[0].workload) as service:
                return measure(service, loads, options.scenarios, seconds, number)

        with BenchEnvironment(folder / "compare", repository) as environment:
            try:
                base, change = alternate(sides, options.rounds, turn)
            except (Stalled, StackError, WrongAnswers) as error:
                console.print(f"FAILED: {error}", style="red", highlight=False, markup=False)
                sys.exit(1)
    console.print(table_of(base, change))
    verdicts = [verdict_of(RatioInterval.of(change[key], base[key]), key[1]) for key in base]
    sys.exit(2 if "WORSE" in verdicts else 0)


class WrongAnswers(Exception):
    """Answers are missing, repeated or wrong: the figures mean nothing."""


def loads_of(repository: Path) -> dict[str, ComparedLoad]:
    """Return the loads of a quick comparison, by workload; a turn of all takes about a minute."""
    return dict(
        zip(
            WORKLOADS,
            (
                ComparedLoad(ffnn_rows(repository), 60_000, 60_000, 200),
                ComparedLoad(ffnn_rows(repository, 32), 4_000, 4_000, 100),
                ComparedLoad(magika_files(repository), 100, 300, 30),
            ),
            strict=True,
        )
    )


def alternate(sides: Sequence[System], rounds: int, turn: Callable[[System, int], Figures]) -> tuple[Figures, Figures]:
    """Give both sides a turn in each round, in alternating order."""
    figures: dict[str, Figures] = {side.kind: {} for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            for key, values in turn(side, number).items():
                figures[side.kind].setdefault(key, []).extend(values)
    base, change = (figures[side.kind] for side in sides)
    return base, change


def measure(
    service: RunningSystem, loads: Sequence[ComparedLoad], scenarios: Sequence[str], seconds: float, number: int
) -> Figures:
    """One side's figures in one round.

    Raises:
        WrongAnswers: A load was not answered exactly once and right.
    """
    figures: Figures = {}
    for load in loads:
        service.burst(load.workload, load.warm_up)
        for scenario in scenarios:
            if scenario == THROUGHPUT:
                run = service.burst(load.workload, load.burst)
                found = {"requests/s": run.rate_per_s}
            else:
                run = service.offer(load.workload, load.rate_per_s, seconds, seed=number)
                found = _latency_of(run)
            if not run.tally.is_clean:
                raise WrongAnswers(f"{load.workload.name}, {scenario}: {run.tally}")
            found[f"job's core-ms per request, {scenario}"] = _core_ms(run)
            for figure, value in found.items():
                figures[load.workload.name, figure] = [value]
    return figures


def _latency_of(run: LoadRun) -> dict[str, float]:
    spent_ms, _ = run.latencies()
    return {f"p{percent} ms": float(np.percentile(spent_ms, percent)) for percent in (50, 99)}


def _core_ms(run: LoadRun) -> float:
    # Never 0, for the ratio's sake.
    return max(sum(spent for part, spent in run.core_s_per_1000.items() if part.startswith("system")), 1e-6)


def table_of(base: Figures, change: Figures) -> Table:
    """Medians of both sides, and the ratio with its interval."""
    table = Table(title="change / base", title_justify="left")
    for name in ("workload", "figure", "base", "change", "ratio", "95 % interval", ""):
        table.add_column(name, justify="right" if name in ("base", "change", "ratio") else "left")
    for cells in _lines(base, change):
        table.add_row(*cells)
    return table


def verdict_of(found: RatioInterval, figure: str) -> str:
    """Return the interval in words."""
    if found.low <= 1 <= found.high:
        return "no difference shown"
    return "better" if (found.low > 1) == (figure in _MORE_IS_BETTER) else "WORSE"


def _lines(base: Figures, change: Figures) -> Iterator[tuple[str, ...]]:
    for (workload, figure), before in base.items():
        after = change[workload, figure]
        found = RatioInterval.of(after, before)
        yield (
            workload,
            figure,
            f"{np.median(before):,.4g}",
            f"{np.median(after):,.4g}",
            f"{found.ratio:.3f}",
            f"{found.low:.3f} to {found.high:.3f}",
            verdict_of(found, figure),
        )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=_checkout, required=True, metavar="PATH", help="the checkout before the change")
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--change", type=_checkout, default=here, metavar="PATH", help="default: this checkout")
    for name, known in (("scenarios", SCENARIOS), ("workloads", WORKLOADS)):
        parser.add_argument(f"--{name}", type=_names(known), default=known, metavar="NAMES", help=", ".join(known))
    parser.add_argument("--rounds", type=int, default=4, help="turns of each checkout; more make the interval narrower")
    parser.add_argument("--quick", action="store_true", help="a quarter of the requests, for under 10 minutes in all")
    parser.add_argument("--scratch", type=Path, metavar="PATH", help="folder for topics and logs; needs 20 GB")
    return parser.parse_args(arguments)


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / ".venv" / "bin" / "anabranch").is_file():
        raise argparse.ArgumentTypeError(f"{text} has no .venv/bin/anabranch: run `make setup` there")
    return path


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown {', '.join(sorted(unknown))}; available: {', '.join(known)}")
        return names

    return parse
