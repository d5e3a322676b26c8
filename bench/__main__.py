"""`python -m bench`: runs scenarios, and writes results, plots and a README."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.stack.errors import StackError
from bench import compare
from bench.harness.analysis.ratio_interval import RatioInterval
from bench.harness.analysis.round_budget import RoundBudget, first_round_s
from bench.harness.environment import BenchEnvironment, Stalled
from bench.harness.settings import Settings
from bench.report import plots, tables
from bench.report.results import Ratio, Run, ScenarioResult, commit, machine, today, versions
from bench.report.summary import read_notes, write_result
from bench.scenarios.base import RegisteredScenario, Scenario, all_scenarios
from bench.systems.in_memory.beam import BeamFailed
from bench.systems.peer_installation import PeerMissing
from bench.workloads.models import FFNN, RESNET
from bench.workloads.repositories import Repositories
from bench.workloads.text_lines import RECOGNIZER
from bench.workloads.workload import FFNN_ROWS

MODES = ("thread", "process")
WORKLOADS = (f"{FFNN} 1", f"{FFNN} {FFNN_ROWS}", MAGIKA, RESNET, RECOGNIZER)
_WORKLOADS_HELP = f"of efficiency, sustainable and ledger: {', '.join(WORKLOADS)}"
_COMMON = ("repeats", "modes", "workloads")
_MINUTES = 120.0
#: An interval as narrow as this share of its ratio needs no more rounds.
_HALF_WIDTH = 0.05
RESULTS = Path(__file__).parent / "results"
#: Apart from the committed figures; git ignores it.
QUICK_RESULTS = RESULTS / "quick"


def main() -> None:
    """Run the chosen scenarios; exit code 1 if a system failed, 2 if a target was missed."""
    if sys.argv[1:2] == ["compare"]:
        compare.main(sys.argv[2:])
    registered = all_scenarios()
    options, settings = _options(registered)
    # A log file has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 140)
    out: Path = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    notes = read_notes()
    failed = missed = stopped = False
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        models = Repositories(folder)
        made = [registered[name].make(settings[name], models) for name in options.only]
        _estimate(console, [scenario for scenario, _ in made], options.minutes)
        ends_s = monotonic() + 60 * options.minutes
        seconds = [_seconds_of(scenario) for scenario, _ in made]
        for number, (scenario, repository) in enumerate(made):
            # Time that a scenario leaves is for the following ones.
            limit_s = (ends_s - monotonic()) * seconds[number] / sum(seconds[number:])
            # A broker each, without the data of another scenario.
            with BenchEnvironment(folder / scenario.name, repository) as environment:
                result, stopped = _run(scenario, settings[scenario.name], environment, console, limit_s)
            draw = registered[scenario.name].draw
            figure = draw(result) if draw and result.rows else None
            if figure is not None:
                plots.save(figure, out, scenario.name)
            summaries = write_result(out, result, notes)
            summary = next(each for each in summaries if each.scenario == scenario.name)
            console.print(tables.table_of(summary))
            for line in tables.verdicts(summary):
                console.print(line, highlight=False, markup=False)
            failed |= bool(result.failures)
            missed |= not all(target.met for target in result.targets)
            tables.write_readme(out, summaries)
            if stopped:
                break
    sys.exit(1 if failed else 2 if missed and not options.quick else 0)


def _seconds_of(scenario: Scenario) -> float:
    return sum(step.seconds for step in scenario.steps())


def _estimate(console: Console, scenarios: Sequence[Scenario], limit: float) -> None:
    minutes = {scenario.name: _seconds_of(scenario) / 60 for scenario in scenarios}
    parts = ", ".join(f"{name} {time:.0f}" for name, time in minutes.items())
    total = sum(minutes.values())
    if total <= limit:
        console.print(f"This takes about {total:.0f} minutes: {parts}.", highlight=False)
        return
    least = sum(first_round_s(scenario.steps()) for scenario in scenarios) / 60
    console.print(
        f"This takes about {max(least, limit):.0f} minutes, and has fewer rounds than in {total:.0f} ({parts}): give "
        "--minutes for more.",
        highlight=False,
    )


def _is_open(ratios: Sequence[Ratio]) -> bool:
    """Tell whether a ratio is too uncertain, or there is none that would tell."""
    return not ratios or any(
        each.interval is None or RatioInterval(each.ratio.median, *each.interval).half_width > _HALF_WIDTH
        for each in ratios
    )


def _run(
    scenario: Scenario, settings: Settings, environment: BenchEnvironment, console: Console, limit_s: float
) -> tuple[ScenarioResult, bool]:
    """Return the result, and True if it was interrupted.

    Args:
        limit_s: Later rounds begin if they end by then.
    """
    stopped = False
    runs: list[Run] = []
    failures: list[str] = []
    skipped: list[str] = []
    steps = list(scenario.steps())
    budget, began_s = RoundBudget(steps, limit_s), monotonic()

    def is_open() -> bool:
        return _is_open(scenario.conclude(runs).ratios)

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(scenario.name, total=len(steps))
        for index, step in enumerate(steps):
            if not budget.takes(index, monotonic() - began_s, is_open):
                progress.advance(task)
                continue
            progress.update(task, description=step.label)
            try:
                runs.extend(step.take(environment))
            except PeerMissing as error:
                skipped.append(f"{step.label}: {error}")
                console.print(skipped[-1], style="yellow", highlight=False, markup=False)
            except (Stalled, StackError, BeamFailed) as error:
                failures.append(f"{step.label}: {error}")
                console.print(failures[-1], style="red", highlight=False, markup=False)
            except KeyboardInterrupt:
                stopped = True
                failures.append(f"{step.label}: stopped here, by hand")
                break
            progress.advance(task)
    conclusion = scenario.conclude(runs)
    result = ScenarioResult(
        scenario=scenario.name,
        command=" ".join(["python -m bench", *_said()]),
        commit=commit(),
        date=today(),
        versions=versions(),
        machine=machine(),
        settings=settings.values(),
        method=scenario.method,
        targets=conclusion.targets,
        ratios=conclusion.ratios,
        rows=conclusion.rows,
        limits=conclusion.limits,
        failures=[failure.replace(str(environment.folder), "…") for failure in failures],
        runs=runs,
        skipped=[line.replace(str(environment.folder), "…") for line in skipped],
    )
    return result, stopped


def _options(registered: Mapping[str, RegisteredScenario]) -> tuple[argparse.Namespace, dict[str, Settings]]:
    """Return the command line, and each scenario's settings."""
    names = tuple(registered)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only show that it works; the figures mean nothing")
    parser.add_argument("--only", type=_names(names), default=names, metavar="NAMES", help=", ".join(names))
    parser.add_argument("--repeats", type=int, help="rounds; each system has one turn in a round")
    parser.add_argument(
        "--minutes",
        type=float,
        default=_MINUTES,
        help="time for all scenarios; first rounds are taken in any case (default: %(default)g)",
    )
    parser.add_argument("--modes", type=_names(MODES), metavar="MODES", help="thread, process, or thread,process")
    parser.add_argument("--workloads", type=_names(WORKLOADS), metavar="NAMES", help=_WORKLOADS_HELP)
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="another setting of a scenario"
    )
    parser.add_argument(
        "--out", type=Path, help="results folder (default: bench/results; with --quick bench/results/quick)"
    )
    parser.add_argument("--scratch", type=Path, help="folder for topics and logs; needs 20 GB")
    options = parser.parse_args()
    bases = {name: registered[name].quick if options.quick else registered[name].full for name in options.only}
    known = {field for base in bases.values() for field in base.__struct_fields__}
    if unknown := sorted({name for name, _ in options.set} - known):
        parser.error(f"unknown setting {', '.join(unknown)}; available: {', '.join(sorted(known))}")
    common = {name: value for name in _COMMON if (value := getattr(options, name)) is not None}
    try:
        return options, {
            name: base.changed(common | {key: value for key, value in options.set if key in base.__struct_fields__})
            for name, base in bases.items()
        }
    except msgspec.ValidationError as error:
        parser.error(f"--set: {error}")


def _said() -> list[str]:
    """Options of this run that affect the measurement."""
    return [
        word
        for number, word in enumerate(sys.argv[1:])
        if not word.startswith(("--out", "--scratch")) and sys.argv[number] not in ("--out", "--scratch")
    ]


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} has no '=': write NAME=VALUE")
    return name, value


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown {', '.join(sorted(unknown))}; available: {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
