"""Writes `docs/reliability.md` and its picture from the results of the slices: `python -m tests.chaos.report`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from matplotlib.figure import Figure

from bench.report import plots
from tests.chaos.chaos_slice import HERE, FaultResult, SliceResult, read_suite
from tests.chaos.endurance import MAX_GROWTH, MAX_GROWTH_MB, EnduranceResult
from tests.chaos.endurance_engine import EngineResult
from tests.chaos.events import EventsResult
from tests.chaos.faults import FAULTS
from tests.chaos.workload import POISON_KINDS

RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "reliability.md"
PICTURE = PAGE.parent / "pictures" / "reliability.svg"

TEMPLATE = HERE / "reliability.md.in"


def read_results(folder: Path = RESULTS) -> list[SliceResult]:
    """Reads the results of all slices, controls included."""
    paths = sorted(path for path in folder.glob("*.json") if not path.stem.startswith(("endurance", "events")))
    return [msgspec.json.decode(path.read_bytes(), type=SliceResult) for path in paths]


def read_events(folder: Path = RESULTS) -> list[EventsResult]:
    """Reads the results of the runs with events."""
    return [msgspec.json.decode(path.read_bytes(), type=EventsResult) for path in sorted(folder.glob("events-*.json"))]


class Endurance(NamedTuple):
    """The results of the runs over many split requests, as far as there are some."""

    core: EnduranceResult | None = None
    engine: EngineResult | None = None


def read_endurance(folder: Path = RESULTS) -> Endurance:
    """Reads the results of the runs over many split requests."""
    core, engine = folder / "endurance.json", folder / "endurance-engine.json"
    return Endurance(
        msgspec.json.decode(core.read_bytes(), type=EnduranceResult) if core.exists() else None,
        msgspec.json.decode(engine.read_bytes(), type=EngineResult) if engine.exists() else None,
    )


def page(results: Sequence[SliceResult], endurance: Endurance, events: Sequence[EventsResult] = ()) -> str:
    """Returns the text of the page."""
    runs = [result for result in results if result.plant == "none"]
    faults = [fault for run in runs for fault in run.faults if not fault.missed]
    counts = {
        name: sum(getattr(run.verdict, name) for run in runs)
        for name in ("requests", "lost", "wrong", "doubled", "disordered")
    }
    planned = [name for name in read_suite() if not name.startswith("gate-")]
    summary = (
        f"{len({run.name for run in runs} & set(planned))} of {len(planned)} slices have a result, beside short runs. "
        f"{counts['requests']:,} requests under {len(faults)} faults of {len(by_kind(faults))} kinds: "
        f"lost {counts['lost']}, wrong {counts['wrong']}, doubled {counts['doubled']}, "
        f"disordered {counts['disordered']}."
    )
    refused = sum(run.refused for run in runs)
    if refused:
        summary += f" The broker took none of {refused:,} more, from a clock that was too far ahead: their sender knew."
    return TEMPLATE.read_text().format(
        task_managers=max(run.plan.task_managers for run in runs),
        cores=max(run.cores for run in runs),
        poison=len(POISON_KINDS),
        summary=summary,
        slices=_slices(runs) + _dirty(runs),
        recovery=_recovery(faults),
        controls=_controls([result for result in results if result.plant != "none"]),
        endurance=_endured(endurance.core) + _endured_by_engine(endurance.engine),
        events=_events(events),
    )


def _slices(runs: Sequence[SliceResult]) -> str:
    rows = []
    for run in runs:
        found, once = run.verdict, run.plan.delivery == "exactly-once"
        cells = [
            run.name,
            f"{found.requests:,}",
            sum(not fault.missed for fault in run.faults),
            found.lost,
            found.wrong,
            found.doubled if once else "-",
            f"{found.disordered} of {found.ordered:,}" if run.plan.balance == "off" else "-",
            "-" if once else f"{found.repeated:,}",
            run.load_average,
            run.commit,
        ]
        rows.append(cells)
    names = ("slice", "requests", "faults", "lost", "wrong", "doubled", "disordered", "repeated", "load", "commit")
    return _table(names, rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _dirty(runs: Sequence[SliceResult]) -> str:
    """Returns the violations and missed faults, which the page must not hide."""
    lines = [f"- {run.name}: {text}" for run in runs for text in (*run.verdict.examples, *filter(None, [run.note]))]
    missed = [f"- {run.name}: {fault.kind}: {fault.missed}" for run in runs for fault in run.faults if fault.missed]
    text = "\nViolations:\n\n" + "\n".join(lines) + "\n" if lines else ""
    return text + ("\nFaults that did not happen, and do not count:\n\n" + "\n".join(missed) + "\n" if missed else "")


def by_kind(faults: Sequence[FaultResult]) -> dict[str, list[FaultResult]]:
    """Returns the faults by kind, in the order of `FAULTS`."""
    found: dict[str, list[FaultResult]] = defaultdict(list)
    for fault in faults:
        found[fault.kind].append(fault)
    return {kind: found[kind] for kind in FAULTS if kind in found}


def _recovery(faults: Sequence[FaultResult]) -> str:
    rows = []
    for kind, some in (by_kind(faults) | {"all": list(faults)}).items():
        again = [fault.answers_again_s for fault in some if fault.answers_again_s is not None]
        caught_up = [fault.caught_up_s for fault in some if fault.caught_up_s is not None]
        figures = [f"{np.percentile(times, part):.1f}" for times in (again, caught_up) if times for part in (50, 95)]
        rows.append([kind, len(some), *figures])
    names = ("fault", "times", "answers again, p50", "p95", "all answered, p50", "p95")
    return _table(names, rows)


def _controls(controls: Sequence[SliceResult]) -> str:
    if not controls:
        return ""
    words = {"drop": "a reader that drops every 500th answer", "double": "a sink that writes every 500th answer twice"}
    lines = [
        f"- {words[run.plant]}: lost {run.verdict.lost}, doubled {run.verdict.doubled} of {run.verdict.requests:,}\n"
        for run in controls
    ]
    return (
        "\n## Controls\n\nDefects that were planted into a run, and found:\n\n"
        + "".join(lines)
        + "\nUnit tests plant each violation into the records of a clean run (`tests/chaos/test_checker.py`).\n"
    )


def _events(results: Sequence[EventsResult]) -> str:
    if not results:
        return ""
    rows = []
    for result in results:
        found = result.verdict
        outcome = [found.lost, found.doubled, found.wrong, found.disordered]
        letters = [f"{found.malformed:,}, {result.ways} ways", found.lost_letters, found.doubled_letters]
        name = f"{result.format}, {result.mode}"
        rows.append([name, f"{found.events:,}", *outcome, *letters, found.wrong_letters, result.commit])
    names = ("events", "good ones", "lost", "doubled", "wrong", "disordered")
    letters_of = ("malformed", "no letter", "two letters", "letters of good ones", "commit")
    some = results[0]
    examples = [f"- {result.format}, {result.mode}: {text}\n" for result in results for text in result.verdict.examples]
    return (
        "\n## Events\n\n"
        f"Payments, {some.rate_per_s:.0f} a second, through a [flow](how-to/events.md) that keeps their order, "
        f"exactly-once. In this order:\n{'; '.join(some.faults)}.\n"
        "A scored event is *wrong* unless its score is ONNX Runtime's, and every other byte of it, its key, headers\n"
        "and timestamp are those of the event. Avro events come in three versions of their schema, two at a time:\n\n"
        + _table((*names, *letters_of), rows)
        + ("\n" + "".join(examples) if examples else "")
    )


def _endured(endurance: EnduranceResult | None) -> str:
    if endurance is None:
        return ""
    grown, slices = endurance.growth(), endurance.slices
    some = [*slices[: -1 : max(1, len(slices) // 10)], slices[-1]]
    rows = [[f"{each.requests:,}", f"{each.checkpoint_bytes:,}", each.windows, each.memory_mb] for each in some]
    return (
        f"\n## {slices[-1].requests:,} split requests\n\n"
        "The classes of the core that Flink drives, in one process without Flink. One request in a hundred has a\n"
        "deadline that passes before its parts come. The largest checkpoint of a slice, and the memory at its end:\n\n"
        + _table(("requests", "checkpoint, bytes", "windows", "memory, MB"), rows)
        + f"\nGrowth by a fitted line: {grown['memory_mb']:+.1f} MB of memory, "
        f"{100 * grown['checkpoint_bytes']:+.1f} % of the checkpoint, {100 * grown['windows']:+.1f} % "
        f"of the windows.\nMore than {MAX_GROWTH_MB:.0f} MB or "
        f"{100 * MAX_GROWTH:.0f} % fails the run, and a planted leak of windows does "
        "(`tests/chaos/test_endurance.py`).\n"
    )


def _endured_by_engine(endurance: EngineResult | None) -> str:
    if endurance is None:
        return ""
    slices = endurance.slices
    some = [*slices[: -1 : max(1, len(slices) // 8)], slices[-1]]
    rows = [[f"{each.requests:,}", f"{each.checkpoint_bytes:,}", each.memory_mb] for each in some]
    return (
        f"\nA job in {endurance.mode} mode on a broker and a cluster, {slices[-1].requests:,} requests of 40 rows as "
        "fast\nas they are answered; a checkpoint holds the requests under way. Java touches its heap bit by bit:\n\n"
        + _table(("requests", "largest checkpoint, bytes", "memory of the TaskManager, MB"), rows)
    )


def draw(faults: Sequence[FaultResult]) -> Figure:
    """Draws the recovery times of each kind."""
    groups = by_kind(faults)
    figure = Figure(figsize=(8, 0.32 * len(groups) + 1), layout="constrained")
    axes = figure.subplots()
    for place, some in enumerate(groups.values()):
        caught_up = [max(0.05, fault.caught_up_s) for fault in some if fault.caught_up_s is not None]
        again = [max(0.05, fault.answers_again_s) for fault in some if fault.answers_again_s is not None]
        names = ("all answered", "answers again") if place == 0 else ("", "")
        axes.plot(caught_up, [place] * len(caught_up), "|", color=plots.PEER, markersize=9, label=names[0])
        axes.plot(again, [place] * len(again), "o", color=plots.OURS, markersize=4, label=names[1])
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.4, -0.7)
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    plots.clean(axes)
    return figure


def main() -> None:
    """Writes page and picture."""
    results = read_results()
    PAGE.write_text(page(results, read_endurance(), read_events()))
    runs = [result for result in results if result.plant == "none"]
    faults = [fault for run in runs for fault in run.faults if not fault.missed]
    plots.save(draw(faults), PICTURE.parent, PICTURE.stem)
    print(f"{PAGE} from {len(results)} results")


if __name__ == "__main__":
    main()
