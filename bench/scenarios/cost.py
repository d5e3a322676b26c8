"""Processor time per row at rising rates and at rising rows per request."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.harness.analysis.measures import Spread
from bench.harness.environment import BenchEnvironment
from bench.harness.load_run import RunningSystem, in_service
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Ratio, Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import anabranch
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload, ffnn_rows

RATES_PER_S = (250, 500, 1_000, 2_000, 4_000)
ROWS = (1, 2, 4, 8, 16, 32, 64)

_RATE_OF_ROWS_PER_S = 100
_WARM_UP = 200_000
_MOST = 1.05
_METRIC = "cost per doubling of load, at most"
_TURN_S = 3.0


class CostRun(Run, frozen=True, kw_only=True):
    """The cost of a load.

    Attributes:
        rows: Rows of each request.
        core_s_per_1000_rows: Core-seconds of the system, without the broker's.
    """

    rate_per_s: float
    rows: int
    core_s_per_1000_rows: float


class Cost:
    """This project's job alone, through all loads of a round.

    Args:
        by_rows: Requests of the feed-forward network by their rows, for all of `ROWS`.
    """

    name = "cost"
    method = (
        "Core-seconds of the job's processes, without the broker's, for each 1,000 rows: from the first request until "
        "the last answer, Poisson loads. Requests of one row at rates that double; then "
        f"{_RATE_OF_ROWS_PER_S} requests a second of rows that double. Cost per doubling: what a row costs at twice "
        "the load over what it costs at once, round by round, 1 being linear; the target is for the largest."
    )

    def __init__(self, settings: Settings, by_rows: Mapping[int, Workload]) -> None:
        self._settings = settings
        self._by_rows = dict(by_rows)
        self._ours = anabranch("thread")

    def steps(self) -> Iterator[Turn]:
        """Each round a new job."""
        loads = len(RATES_PER_S) + len(ROWS)
        seconds = 25 + loads * (self._settings.load_seconds + _TURN_S)
        for repeat in range(self._settings.repeats):
            yield Turn(f"cost, round {repeat + 1}", partial(self._run, repeat), seconds, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Costs, and their ratio for each doubling."""
        ours = [run for run in runs if isinstance(run, CostRun)]
        rows = rows_of(ours, {"core_s_per_1000_rows": [run.core_s_per_1000_rows for run in ours]}, keys_of(ours))
        by_load = _doublings(ours, [self._at(rate) for rate in RATES_PER_S])
        by_rows = _doublings(ours, [self._of(rows) for rows in ROWS])
        targets = []
        if by_load:
            value = max(ratio.ratio.median for ratio in by_load)
            clean = all(run.tally.is_clean for run in ours)
            about = self._by_rows[1].name, self._ours.name, _METRIC
            targets = [target_of(*about, value, "<=", _MOST, clean=clean)]
        return Conclusion(rows, [*by_load, *by_rows], targets, {})

    def _run(self, repeat: int, environment: BenchEnvironment) -> list[CostRun]:
        single, seed = self._by_rows[1], 300 + repeat
        with in_service(environment, self._ours, single) as service:
            service.burst(single, self._settings.burst_of(_WARM_UP))
            by_load = [self._offer(service, single, rate, self._at(rate), repeat, seed) for rate in RATES_PER_S]
            by_rows = [
                self._offer(service, self._by_rows[rows], _RATE_OF_ROWS_PER_S, self._of(rows), repeat, seed)
                for rows in ROWS
            ]
        return by_load + by_rows

    def _offer(
        self, service: RunningSystem, workload: Workload, rate_per_s: float, system: str, repeat: int, seed: int
    ) -> CostRun:
        offered = service.offer(workload, rate_per_s, self._settings.load_seconds, seed)
        own = sum(spent for part, spent in offered.core_s_per_1000.items() if part.startswith("system"))
        return CostRun(
            system=system,
            workload=self._by_rows[1].name,
            repeat=repeat,
            tally=offered.tally,
            core_s_per_1000=offered.core_s_per_1000,
            other_cores=offered.other_cores,
            rate_per_s=rate_per_s,
            rows=workload.rows,
            core_s_per_1000_rows=own / workload.rows,
        )

    def _at(self, rate_per_s: float) -> str:
        return f"{self._ours.name}, {rate_per_s:g}/s"

    def _of(self, rows: int) -> str:
        return f"{self._ours.name}, {_RATE_OF_ROWS_PER_S}/s of {rows} row{'s' * (rows > 1)}"


def _doublings(runs: Sequence[CostRun], systems: Sequence[str]) -> list[Ratio]:
    costs = [run.core_s_per_1000_rows for run in runs]
    workloads = {run.workload for run in runs}
    ratios = [
        ratio_of(runs, costs, two, one, workload, "core-s per 1,000 rows")
        for workload in workloads
        for one, two in pairwise(systems)
    ]
    return [ratio for ratio in ratios if ratio]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
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
        axes.plot(places, [spread.median for spread in spreads], "o-", color=plots.OURS, markersize=4)
        axes.fill_between(
            places,
            [spread.low for spread in spreads],
            [spread.high for spread in spreads],
            color=plots.OURS,
            alpha=0.25,
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
        axes.grid(axis="y", color=plots.FAINT, linewidth=0.6)
        plots.clean(axes)
    panels[0].set_ylabel("core-ms for 1,000 rows")
    return figure


@scenario(Cost.name, full=Settings(), quick=Settings.quick(), draw=draw)
def make(settings: Settings, models: Repositories) -> Made:
    """Make the scenario."""
    return Cost(settings, {rows: ffnn_rows(models.small, rows) for rows in ROWS}), models.small
