"""`python -m bench`: every scenario, every system in turn; writes result files, plots and a README."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.stack.errors import StackError
from bench import compare
from bench.harness.environment import BenchEnvironment, Stalled
from bench.harness.settings import QUICK, Settings
from bench.program import SCENARIOS, Repositories
from bench.report import plots, tables
from bench.report.results import AnyRun, ScenarioResult, commit, machine, today, versions
from bench.report.summary import read_notes, write_result
from bench.scenarios.base import Scenario
from bench.scenarios.efficiency import FFNN_ROWS
from bench.systems.in_memory.beam import BeamFailed
from bench.systems.peer_installation import PeerMissing
from bench.workloads.models import FFNN, RESNET
from bench.workloads.text_lines import RECOGNIZER

WORKLOADS = (f"{FFNN} 1", f"{FFNN} {FFNN_ROWS}", MAGIKA, RESNET, RECOGNIZER)
_WORKLOADS_HELP = f"of efficiency, sustainable and ledger: {', '.join(WORKLOADS)}"
RESULTS = Path(__file__).parent / "results"
#: Never beside the committed figures: those of a quick run mean nothing.
QUICK_RESULTS = RESULTS / "quick"


def main() -> None:
    """Runs what the command line asks for; exit code 1 if a system failed, 2 if a target was missed."""
    if sys.argv[1:2] == ["compare"]:
        compare.main(sys.argv[2:])
    options = _options()
    settings = _settings(options)
    # A log file has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 140)
    out: Path = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    notes = read_notes()
    failed = missed = stopped = False
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        models = Repositories(folder)
        made = [SCENARIOS[name](settings, models) for name in options.only]
        _estimate(console, [scenario for scenario, _ in made])
        for scenario, repository in made:
            # A broker each, so that none pays for what another left on it.
            with BenchEnvironment(folder / scenario.name, repository) as environment:
                result, stopped = _run(scenario, settings, environment, console)
            plots.draw(result, out)
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


def _estimate(console: Console, scenarios: Sequence[Scenario]) -> None:
    minutes = {scenario.name: sum(step.seconds for step in scenario.steps()) / 60 for scenario in scenarios}
    parts = ", ".join(f"{name} {time:.0f}" for name, time in minutes.items())
    console.print(f"This takes about {sum(minutes.values()):.0f} minutes: {parts}.", highlight=False)


def _run(
    scenario: Scenario, settings: Settings, environment: BenchEnvironment, console: Console
) -> tuple[ScenarioResult, bool]:
    """The result, of what was measured until then if it was interrupted; and whether it was."""
    stopped = False
    runs: list[AnyRun] = []
    failures: list[str] = []
    skipped: list[str] = []
    steps = list(scenario.steps())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(scenario.name, total=len(steps))
        for step in steps:
            progress.update(task, description=step.label)
            try:
                runs += step.take(environment)
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="show that all of it works; the figures mean nothing")
    parser.add_argument("--only", type=_names, default=tuple(SCENARIOS), metavar="NAMES", help=", ".join(SCENARIOS))
    parser.add_argument("--repeats", type=int, help="rounds; in each, every system has its turn")
    parser.add_argument("--modes", type=_modes, metavar="MODES", help="thread, process, or thread,process")
    parser.add_argument("--seconds", type=float, help="how long each latency run sends")
    parser.add_argument("--workloads", type=_workloads, metavar="NAMES", help=_WORKLOADS_HELP)
    parser.add_argument("--requests", type=int, help="requests that are measured in each throughput run")
    parser.add_argument("--tasks", type=int, help="parallelism of the Flink systems in latency runs")
    parser.add_argument(
        "--out", type=Path, help="results folder (default: bench/results; with --quick bench/results/quick)"
    )
    parser.add_argument("--scratch", type=Path, help="where topics and logs go meanwhile; 20 GB")
    return parser.parse_args()


def _settings(options: argparse.Namespace) -> Settings:
    chosen = {
        "repeats": options.repeats,
        "modes": options.modes,
        "latency_seconds": options.seconds,
        "throughput_requests": options.requests,
        "latency_tasks": options.tasks,
        "workloads": options.workloads,
    }
    base = QUICK if options.quick else Settings()
    return msgspec.structs.replace(base, **{name: value for name, value in chosen.items() if value is not None})


def _said() -> list[str]:
    """The options of this run that change what is measured."""
    return [
        word
        for number, word in enumerate(sys.argv[1:])
        if not word.startswith(("--out", "--scratch")) and sys.argv[number] not in ("--out", "--scratch")
    ]


def _names(text: str) -> tuple[str, ...]:
    return _chosen(text, tuple(SCENARIOS))


def _workloads(text: str) -> tuple[str, ...]:
    return _chosen(text, WORKLOADS)


def _modes(text: str) -> tuple[str, ...]:
    return _chosen(text, ("thread", "process"))


def _chosen(text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()
