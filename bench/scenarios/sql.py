"""`ML_PREDICT` of Flink's SQL through a gateway: rows together, and a row in each request."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.harness.environment import BenchEnvironment, await_model
from bench.harness.preloaded import Preloaded, ThroughputRun
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Run, ScenarioResult, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import System, anabranch
from bench.workloads.events import FRAUD, payments
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload

_METRIC = "rate_per_s"
_LEAST = 3.0
_SIZE_BYTES = 200
_TOGETHER, _APART = "ML_PREDICT", "ML_PREDICT, a row a request"
#: Share of the rows for the slow one.
_SHARES = {_TOGETHER: 1.0, _APART: 0.1}
_TURN_S = 70.0


class SqlSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        sql_rows: Measured rows.
        sql_warm_up: Rows before these.
    """

    repeats: int = 2
    sql_rows: int = 100_000
    sql_warm_up: int = 100_000


class Sql:
    """Both ways to ask the same gateway, in turn."""

    name = "sql"
    method = (
        "A query reads payments of 0.2 KB in JSON from Kafka, asks a gateway for their scores by ML_PREDICT and "
        "writes numbers and scores to Kafka; all payments are in the topic before. Flink keeps up to 1,000 rows under "
        "way. The peer is this project's provider with max-rows = 1 and 64 requests at a time: it sends one row in "
        "each request, as flink-model-triton 2.3.0 would, which itself plans no query: its check refuses every column "
        "(ADR 0032). Each round starts a job and its gateway, which both queries ask, in alternating order. Each "
        "score is compared with a direct run of ONNX Runtime. Rate = rows after warm-up / time between the first and "
        "last LogAppendTime; the peer gets a tenth of the rows. Core-seconds have the query, the gateway and the job."
    )

    def __init__(self, settings: SqlSettings, rows: Workload) -> None:
        self._settings = settings
        self._workload = rows
        self._queries = [System(_TOGETHER), System(_APART, rows_together=1)]
        self._preloaded = {
            kind: Preloaded(rows, round(settings.sql_rows * share), round(settings.sql_warm_up * share))
            for kind, share in _SHARES.items()
        }

    def steps(self) -> Iterator[Turn]:
        """Both queries in each round."""
        for repeat in range(self._settings.repeats):
            yield Turn(f"sql, round {repeat + 1}", partial(self._run, repeat), _TURN_S, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates, and their ratio."""
        ours = [run for run in runs if isinstance(run, ThroughputRun)]
        rates = [run.rate_per_s for run in ours]
        rows = rows_of(ours, {_METRIC: rates}, keys_of(ours))
        ratio = ratio_of(ours, rates, _TOGETHER, _APART, self._workload.name, _METRIC)
        if ratio is None:
            return Conclusion(rows, [], [], {})
        clean = not any(row.not_answered_right for row in rows if row.system == _TOGETHER)
        about = self._workload.name, _TOGETHER, f"rate / {_APART}"
        return Conclusion(rows, [ratio], [target_of(*about, ratio.ratio.median, ">=", _LEAST, clean=clean)], {})

    def _run(self, repeat: int, environment: BenchEnvironment) -> list[ThroughputRun]:
        topics = environment.topics()
        with (
            environment.serving(anabranch("thread"), topics) as job,
            environment.serving_at_gateway(topics) as (gateway, doors),
        ):
            await_model(doors, FRAUD)
            helpers = [job, gateway]
            queries = self._queries if repeat % 2 == 0 else self._queries[::-1]
            return [
                self._preloaded[query.kind].serve(
                    replace(query, gateway_url=f"http://{doors.http}"), repeat, environment, helpers=helpers
                )
                for query in queries
            ]


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    figure = Figure(figsize=(8, 1.6), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(result.rows):
        rate = row.metrics[_METRIC]
        axes.barh(place, rate.median, color=plots.OURS if row.system == _TOGETHER else plots.PEER, height=0.6)
        axes.plot([rate.low, rate.high], [place, place], color=plots.INK, linewidth=1.5)
        axes.text(rate.high, place, f"  {rate.median:,.0f}", va="center", fontsize=9)
    plots.name_rows(axes, result.rows)
    axes.set_xlim(0, 1.18 * max(row.metrics[_METRIC].high for row in result.rows))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
    axes.set_xlabel("rows a second (median; line: range)")
    return figure


@scenario(Sql.name, full=SqlSettings(), quick=SqlSettings.quick(sql_rows=10_000, sql_warm_up=10_000), draw=draw)
def make(settings: SqlSettings, models: Repositories) -> Made:
    """Make the scenario."""
    return Sql(settings, replace(payments(models.fraud, "json", _SIZE_BYTES), name="rows", wire="rows")), models.fraud
