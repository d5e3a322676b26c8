"""One figure for each scenario."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.harness.analysis.latency_phases import ALL_STAGES
from bench.harness.analysis.measures import Spread
from bench.harness.messages import MESSAGES
from bench.report.results import CostRun, ExchangeRun, MemoryRun, OverloadRun, RateRun, Row, ScalingRun, ScenarioResult
from bench.scenarios.sustainable import SHARES

_OURS, _PEER = "#0b6e99", "#8a8f98"
#: Greys that can be read on white and on black: pictures have no background of their own.
_INK, _FAINT = "#76818d", "#76818d55"
_PARTS = ("#9aa4b0", "#0b6e99", "#e08e45", "#7a9e7e")
_STAGES = ("#9aa4b0", "#c2a14d", "#6d8b74", "#b0695a", "#8a6fa8", "#0b6e99", "#5aa7a7", "#d08c60", "#7f8a96", "#a9b4bf")
_SUBJECTS = ("#0b6e99", "#e08e45", "#7a9e7e", "#b0695a", "#8a6fa8", "#c2a14d", "#5aa7a7")
_TARGET = "#d9483b"
_MARKS = {"p50_ms": "o", "p95_ms": "D", "p99_ms": "s"}

# Text stays text, and the same data makes the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 10})
for _part in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
    mpl.rcParams[_part] = _INK


def draw(result: ScenarioResult, folder: Path) -> Path | None:
    """Draws a scenario's figure into a folder; returns where, or None if there is nothing to draw."""
    draws = {
        "latency": _latency,
        "throughput": _throughput,
        "efficiency": _efficiency,
        "sustainable": _sustainable,
        "ledger": _ledger,
        "cost": _cost,
        "burst": _burst,
        "memory": _memory,
        "overload": _overload,
        "exchange": _exchange,
        "scaling": _scaling,
        "balance": _balance,
    }
    if not result.rows or result.scenario not in draws:
        return None
    figure = draws[result.scenario](result)
    if figure is None:  # it was interrupted before there was anything to compare
        return None
    path = folder / f"{result.scenario}.svg"
    figure.savefig(path, metadata={"Date": None}, transparent=True)
    return path


def _latency(result: ScenarioResult) -> Figure:
    workloads = list(dict.fromkeys(row.workload for row in result.rows))
    figure = Figure(figsize=(8, 1.2 + 2.0 * len(workloads)), layout="constrained")
    panels = figure.subplots(len(workloads), 1, squeeze=False)[:, 0]
    for axes, workload in zip(panels, workloads, strict=True):
        rows = [row for row in result.rows if row.workload == workload]
        for place, row in enumerate(rows):
            for metric, mark in _MARKS.items():
                _point(axes, row.metrics[metric], place, mark, _colour(row))
        limits = {target.metric: target.limit for target in result.targets if target.workload == workload}
        for metric, limit in limits.items():
            axes.axvline(limit, color=_TARGET, linewidth=1, linestyle=":")
            axes.text(limit, -0.62, f" {metric[:3]} target", color=_TARGET, fontsize=8, va="bottom")
        rate = next(run.rate_per_s for run in result.runs if run.workload == workload and hasattr(run, "rate_per_s"))
        _name_rows(axes, rows)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(f"{workload}, {rate:g} requests/s", loc="left", fontsize=11)
    for metric, mark in _MARKS.items():
        panels[0].plot([], [], mark, color=_INK, label=metric[:3])
    panels[0].legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    panels[-1].set_xlabel("latency from the scheduled send time, ms (median and range of the rounds)")
    return figure


def _throughput(result: ScenarioResult) -> Figure:
    figure = Figure(figsize=(10, 1.3 + 0.5 * len(result.rows)), layout="constrained")
    rates, costs = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(result.rows):
        rate = row.metrics["rate_per_s"]
        rates.barh(place, rate.median, color=_colour(row), height=0.6)
        rates.plot([rate.low, rate.high], [place, place], color=_INK, linewidth=1.5)
        rates.text(rate.high, place, f"  {rate.median:,.0f}", va="center", fontsize=9)
        # Who runs many processes has many parts, and who has one cannot be told from its broker's: a sum for each.
        core_ms = 1000 * sum(row.core_s_per_1000.values())
        costs.barh(place, core_ms, color=_colour(row), height=0.6)
        costs.text(core_ms, place, f"  {core_ms:,.0f}", va="center", fontsize=9)
    _name_rows(rates, result.rows)
    rates.set_xlim(0, 1.18 * max(row.metrics["rate_per_s"].high for row in result.rows))
    rates.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
    rates.set_xlabel("requests/s (median; line: range)")
    rates.set_title("FFNN, one row a request", loc="left", fontsize=11)
    costs.set_xscale("log")
    costs.margins(x=0.12)
    costs.set_xlabel("core-ms for 1,000 requests, with the broker's")
    _clean(costs)
    return figure


def _efficiency(result: ScenarioResult) -> Figure | None:
    rows = [row for row in result.rows if "of_attainable" in row.metrics]
    if not rows:
        return None
    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure = Figure(figsize=(8, 1.0 + 0.5 * len(rows) + 0.5 * len(workloads)), layout="constrained")
    heights = [sum(row.workload == workload for row in rows) for workload in workloads]
    panels = figure.subplots(len(workloads), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, workload in zip(panels, workloads, strict=True):
        shown = [row for row in rows if row.workload == workload]
        for place, row in enumerate(shown):
            share = row.metrics["of_attainable"]
            axes.barh(place, 100 * share.median, color=_colour(row), height=0.6)
            axes.plot([100 * share.low, 100 * share.high], [place, place], color=_INK, linewidth=1.5)
            label = f"  {row.metrics['rate_per_s'].median:,.4g}/s"
            axes.text(100 * share.high, place, label, va="center", fontsize=9)
        for target in result.targets:
            if target.workload == workload and target.metric == "rate / attainable":
                axes.axvline(100 * target.limit, color=_TARGET, linewidth=1, linestyle=":")
        _name_rows(axes, shown)
        axes.set_xlim(0, 1.25 * max(100 * row.metrics["of_attainable"].high for row in shown))
        axes.set_title(workload, loc="left", fontsize=11)
    panels[-1].set_xlabel("% of ONNX Runtime's own rate beside broker and generator (median and range of the rounds)")
    return figure


def _sustainable(result: ScenarioResult) -> Figure:
    runs = [run for run in result.runs if isinstance(run, RateRun)]
    workloads = list(dict.fromkeys(run.workload for run in runs))
    columns = min(2, len(workloads))
    lines = -(-len(workloads) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.9 + 2.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    panels, spare = grid[: len(workloads)], grid[len(workloads) :]
    for axes in spare:
        axes.set_axis_off()
    systems = list(dict.fromkeys(run.system for run in runs))
    for axes, workload in zip(panels, workloads, strict=True):
        for number, system in enumerate(systems):
            points = []
            for load in SHARES:
                chosen = [run for run in runs if (run.workload, run.system, run.load) == (workload, system, load)]
                if chosen:
                    values = [(run.rate_per_s, run.latency.p50_ms, run.latency.p99_ms) for run in chosen]
                    points.append(np.median(values, axis=0))
            if points:
                rates, middle, tail = np.array(points).T
                axes.plot(rates, tail, "o-", color=_SUBJECTS[number % len(_SUBJECTS)], markersize=4, label=system)
                axes.plot(rates, middle, "o:", color=_SUBJECTS[number % len(_SUBJECTS)], markersize=3)
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter("")
        axes.set_ylabel("ms")
        axes.set_title(workload, loc="left", fontsize=11)
        axes.grid(axis="y", color=_FAINT, linewidth=0.6)
        _clean(axes)
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, frameon=False, fontsize=8, ncols=3, loc="outside upper left")
    figure.supxlabel(
        "requests/s, at 5, 25, 50, 75 and 90 % of each one's sustainable rate; p99, dotted: p50", fontsize=9
    )
    return figure


def _ledger(result: ScenarioResult) -> Figure:
    figure = Figure(figsize=(8, 1.3 + 0.5 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(result.rows))
    for stage, colour in zip(ALL_STAGES, _STAGES, strict=True):
        sums = [sum(row.metrics[f"{name}_ms"].median for name in ALL_STAGES) for row in result.rows]
        widths = np.array([row.metrics[f"{stage}_ms"].median for row in result.rows]) / np.array(sums) * 100
        axes.barh(range(len(result.rows)), widths, left=left, height=0.6, color=colour, label=stage)
        left += widths
    names = [f"{row.workload}\n{row.metrics['mean_ms'].median:.3g} ms" for row in result.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the mean latency")
    axes.legend(frameon=False, ncols=len(ALL_STAGES), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    _clean(axes)
    return figure


def _cost(result: ScenarioResult) -> Figure:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    runs = [run for run in result.runs if isinstance(run, CostRun)]
    panels = figure.subplots(1, 2)
    one_row = sorted({run.rate_per_s for run in runs if run.rows == 1})
    rows = sorted({run.rows for run in runs})
    slowest = {run.rate_per_s for run in runs if run.rows == rows[-1]}
    by_rate = [[run for run in runs if run.rows == 1 and run.rate_per_s == rate] for rate in one_row]
    by_rows = [[run for run in runs if run.rows == count and run.rate_per_s in slowest] for count in rows]
    for axes, places, groups, label in (
        (panels[0], one_row, by_rate, "requests of one row a second"),
        (panels[1], rows, by_rows, f"rows in each of {min(slowest):g} requests a second"),
    ):
        spreads = [Spread.of([1000 * run.core_s_per_1000_rows for run in group]) for group in groups]
        axes.plot(places, [spread.median for spread in spreads], "o-", color=_OURS, markersize=4)
        axes.fill_between(
            places, [spread.low for spread in spreads], [spread.high for spread in spreads], color=_OURS, alpha=0.25
        )
        for place, spread in zip(places, spreads, strict=True):
            axes.annotate(
                f"{spread.median:.3g}", (place, spread.median), (3, 5), textcoords="offset points", fontsize=8
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter("")
        axes.set_xlabel(label)
        axes.grid(axis="y", color=_FAINT, linewidth=0.6)
        _clean(axes)
    panels[0].set_ylabel("core-ms for 1,000 rows")
    return figure


def _burst(result: ScenarioResult) -> Figure:
    metrics = [name for name in result.rows[0].metrics if name.startswith("hit_share_")]
    figure = Figure(figsize=(8, 1.2 + 0.7 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    for number, metric in enumerate(metrics):
        places = np.arange(len(result.rows)) + (number - 1) * 0.25
        shares = [100 * row.metrics[metric].median for row in result.rows]
        axes.barh(places, shares, height=0.22, color=_PARTS[1:][number], label=metric.removeprefix("hit_share_"))
    _name_rows(axes, result.rows)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the requests answered before their deadline (median of the rounds)")
    axes.legend(frameon=False, title="priority", fontsize=8, loc="lower left", bbox_to_anchor=(1, 0))
    return figure


def _memory(result: ScenarioResult) -> Figure:
    runs = [run for run in result.runs if isinstance(run, MemoryRun)]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        colour = _OURS if run.system.startswith("anabranch") else _PEER
        thousands = np.array(run.answered) / 1000
        axes.plot(thousands, run.resident_mb, ".", color=colour, markersize=4)
        ends = np.array([run.answered[0], run.answered[-1]])
        axes.plot(ends / 1000, [run.line.at(end / 10_000) for end in ends], color=colour, linewidth=1.5)
        slope = f"{run.line.slope:+.2f} MB for each 10,000"
        axes.text(thousands[-1], run.resident_mb[-1], f"{run.system}\n{slope}", color=colour, ha="right", va="bottom")
    axes.set_ylim(0, 1.25 * max(run.peak_mb for run in runs))
    axes.set_xlabel("thousand requests after warm-up")
    axes.set_ylabel("resident memory of the TaskManager, MB")
    _clean(axes)
    return figure


def _overload(result: ScenarioResult) -> Figure:
    runs = [run for run in result.runs if isinstance(run, OverloadRun)]
    by_load = [[run for run in runs if run.load == load] for load in sorted({run.load for run in runs})]
    names = [f"{same[0].load:g} x" for same in by_load]
    offered, served = (
        [float(np.median([getattr(run, name) for run in same])) for same in by_load]
        for name in ("offered_per_s", "goodput_per_s")
    )
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rates, tails = figure.subplots(1, 2)
    rates.bar(names, offered, color=_FAINT, label="offered")
    rates.bar(names, served, color=_OURS, width=0.5, label="served")
    rates.axhline(runs[0].peak_per_s, color=_TARGET, linewidth=1, linestyle=":", label="peak")
    rates.set_ylabel("requests/s")
    rates.legend(frameon=False)
    for number, priority in enumerate(runs[0].p99_ms):
        medians = [np.median([run.p99_ms[priority] for run in same]) for same in by_load]
        tails.plot(names, medians, "o-", color=_PARTS[1:][number], label=priority)
    tails.set_yscale("log")
    tails.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    tails.set_ylabel("p99 latency of what was served, ms")
    tails.legend(frameon=False, title="priority")
    for axes in (rates, tails):
        axes.set_xlabel("offered load, as a multiple of the peak")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _balance(result: ScenarioResult) -> Figure:
    figure = Figure(figsize=(8, 1.0 + 0.4 * len(result.rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(result.rows):
        skew = row.metrics["busiest_over_mean"]
        axes.barh(place, skew.median, color=_PEER if "no balance" in row.system else _OURS, height=0.6)
        axes.plot([skew.low, skew.high], [place, place], color=_INK, linewidth=1.5)
    axes.axvline(result.targets[0].limit if result.targets else 1, color=_TARGET, linewidth=1, linestyle=":")
    _name_rows(axes, result.rows)
    axes.set_yticks(range(len(result.rows)), [f"{row.workload}: {row.system}" for row in result.rows])
    axes.set_xlabel("busy time of the busiest task over the mean (1: both as busy; 2: one did everything)")
    return figure


def _exchange(result: ScenarioResult) -> Figure:
    runs = [run for run in result.runs if isinstance(run, ExchangeRun)]
    sizes = {run.workload: run.size_bytes for run in runs}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("mb_per_s", "p50_ms"), ("MB/s, as fast as taken", "p50 latency, ms"), strict=True
    ):
        for system in dict.fromkeys(row.system for row in result.rows):
            rows = sorted((row for row in result.rows if row.system == system), key=lambda row: sizes[row.workload])
            places = [sizes[row.workload] for row in rows]
            spreads = [row.metrics[metric] for row in rows]
            colour = _PEER if system == MESSAGES else _OURS
            axes.plot(places, [spread.median for spread in spreads], "o-", color=colour, label=system)
            axes.vlines(places, [spread.low for spread in spreads], [spread.high for spread in spreads], color=colour)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(sizes.values()), list(sizes), rotation=45)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("size of a record")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def _scaling(result: ScenarioResult) -> Figure:
    runs = [run for run in result.runs if isinstance(run, ScalingRun)]
    workloads = list(dict.fromkeys(run.workload for run in runs))
    figure = Figure(figsize=(4 * len(workloads), 4), layout="constrained")
    panels = figure.subplots(1, len(workloads), squeeze=False)[0]
    for axes, workload in zip(panels, workloads, strict=True):
        first = min((run for run in runs if run.workload == workload), key=lambda run: run.nodes)
        ends = np.array([1, max(run.nodes for run in runs)])
        axes.plot(ends, ends * first.rate_per_s / first.nodes, color=_FAINT, linewidth=1.5, label="linear")
        for number, system in enumerate(dict.fromkeys(run.system for run in runs)):
            taken = [run for run in runs if (run.workload, run.system) == (workload, system)]
            nodes, rates = [run.nodes for run in taken], [run.rate_per_s for run in taken]
            axes.plot(nodes, rates, "o-", color=_PARTS[1:][number], markersize=4, label=system)
            if taken:
                reason = (nodes[-1], rates[-1])
                place = (0, 5 if number != 1 else -12)
                axes.annotate(taken[-1].held_up_by, reason, place, textcoords="offset points", ha="right", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_title(workload, loc="left", fontsize=11)
        axes.set_xlabel("nodes")
        _clean(axes)
    panels[0].set_ylabel("rows/s, simulated")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    return figure


def _point(axes: Axes, spread: Spread, place: int, mark: str, colour: str) -> None:
    axes.plot([spread.low, spread.high], [place, place], color=colour, linewidth=1.5, alpha=0.6)
    axes.plot(spread.median, place, mark, color=colour, markersize=6)
    axes.annotate(
        f"{spread.median:.3g}", (spread.median, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
    )


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.system for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _colour(row: Row) -> str:
    return _OURS if row.system.startswith("anabranch") else _PEER
