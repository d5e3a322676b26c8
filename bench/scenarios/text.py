"""Texts of very different lengths for MiniLM: padded batches beside a loop that knows all texts, and beside peers."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from anabranch.schemas.wire import codec
from bench.harness.analysis.measures import Percentiles, Spread, Tally
from bench.harness.environment import BenchEnvironment
from bench.harness.load_run import LoadRun, in_service
from bench.harness.response_log import difference
from bench.harness.settings import Settings
from bench.report import plots
from bench.report.results import Ratio, Run, ScenarioResult, Target, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.in_memory import beam
from bench.systems.in_memory.sorted_loop import BATCH_TEXTS, run_sorted
from bench.systems.registry import CONFLUENT, MLSERVER, RAY_SERVE, System, anabranch
from bench.workloads.docstrings import FLOATS, INTEGERS, docstrings
from bench.workloads.repositories import Repositories
from bench.workloads.workload import Workload

LOOP, NOT_PADDED = "sorted loop", ", not padded"
AT_ONCE, HALF, NO_QUEUE = "at once", "50 %", "no queue"
TAIL = f"p99 at {HALF} / p99 with {NO_QUEUE}"

#: Shares of the rate at which texts are answered that come at once.
_SHARES = {NO_QUEUE: 0.1, HALF: 0.5}
_PEERS = (CONFLUENT, RAY_SERVE, MLSERVER)
_LEAST_OF_LOOP, _LEAST_OF_NOT_PADDED, _LEAST_OF_PEER = 0.9, 1.5, 1.0
_MOST_TAIL = 3.0
_WARM_UP = 400
#: Estimates of a start, of a second's texts, and of a load's own time.
_START_S, _ABOUT_PER_S, _LOAD_S = 18.0, 80.0, 3.0


class TextSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        text_seconds: Duration of each load at a fixed rate.
    """

    text_seconds: float = 12.0


class TextRun(Run, frozen=True, kw_only=True):
    """Texts that come at once, or at a share of the rate at which those are answered."""

    load: str
    rate_per_s: float
    latency: Percentiles


class Text:
    """Every system in turn, on the same texts.

    Args:
        padded: All texts, one in each request.
        apart: The same for a copy of the model that is not padded.
        about_model: A sentence on it.
    """

    method = (
        "MiniLM on real texts of very different lengths: docstrings of the running Python's library, as tokens of the"
        " model's own tokenizer (which ends at 128), one text a request, in a random order. Rate: all texts are sent "
        "at once, to a system that has answered some before; from the first one sent to the last answer's "
        "LogAppendTime. Sorted loop: ONNX Runtime alone, on one thread, which sorts all texts by length and fills "
        f"each batch of {BATCH_TEXTS} up; so it sees the future, and has neither broker nor answers to write. Not "
        "padded: a copy of the model without [padding]. Worker, Ray Serve and Beam (in memory, without broker) run "
        "what is there, 64 texts at most, in batches of equal length, which was quicker than filling all up; MLServer"
        " joins tensors of any shapes, which gives wrong answers, and so gets the model without its batching. "
        "Latency: Poisson loads of a tenth (no queue) and of half of the system's own rate, from the scheduled send "
        "time; p99 beside p99, because a long text takes far longer than most. Every answer, a vector for each token,"
        " is compared with a run of its text alone: deviation is the largest difference, cosine the least between "
        "both outputs. "
    )

    def __init__(
        self, name: str, settings: TextSettings, padded: Workload, apart: Workload, model: Path, about_model: str
    ) -> None:
        self.name = name
        self.method += about_model
        self._settings = settings
        self._padded, self._apart = padded, apart
        self._model = model
        self._ours = [anabranch(mode) for mode in settings.modes]
        self._limits: dict[str, float] = {}

    def steps(self) -> Iterator[Turn]:
        """Round by round: the loop, ours in each mode, the peers."""
        settings = self._settings
        texts_s = settings.burst_of(len(self._padded.requests)) / _ABOUT_PER_S
        ours_s = _START_S + 3 * texts_s + len(_SHARES) * (settings.text_seconds + _LOAD_S)
        yield Turn(f"{self.name}: Beam in memory", self._measure_beam, 2 * texts_s)
        for repeat in range(settings.repeats):
            label = f"{self.name}, round {repeat + 1}:"
            yield Turn(f"{label} {LOOP}", partial(self._loop, repeat), texts_s, repeat)
            for system in self._ours:
                yield Turn(f"{label} {system.name}", partial(self._serve_ours, system, repeat), ours_s, repeat)
            for peer in _PEERS:
                yield Turn(f"{label} {peer.name}", partial(self._serve, peer, repeat), _START_S + 2 * texts_s, repeat)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates beside the loop's and the peers', and latency at half of the rate."""
        ours = [run for run in runs if isinstance(run, TextRun)]
        at_once = [run for run in ours if run.load == AT_ONCE]
        loads = [run for run in ours if run.load != AT_ONCE]
        rates = [run.rate_per_s for run in at_once]
        metrics = {
            "rate_per_s": rates,
            "deviation": [run.tally.deviation for run in at_once],
            "cosine": [run.tally.cosine for run in at_once],
        }
        tails = {
            "rate_per_s": [run.rate_per_s for run in loads],
            "p50_ms": [run.latency.p50_ms for run in loads],
            "p99_ms": [run.latency.p99_ms for run in loads],
        }
        rows = rows_of(at_once, metrics, keys_of(at_once)) + rows_of(loads, tails, keys_of(loads))
        workload = self._padded.name
        pairs = [(system.name, peer) for system in self._ours for peer in self._peers_of(system)]
        found = [ratio_of(at_once, rates, *pair, workload, "rate_per_s") for pair in pairs]
        ratios = [ratio for ratio in found if ratio]
        return Conclusion(rows, ratios, [*self._rates(ours, ratios), *self._tails(ours)], self._limits)

    def _measure_beam(self, environment: BenchEnvironment) -> list[TextRun]:
        path = environment.folder / "texts.npz"
        self._padded.save(path)
        rate = beam.texts_per_s(self._model, path, self._settings.burst_of(len(self._padded.requests)))
        self._limits["Beam RunInference in memory, 1 thread, batches of 64: texts/s"] = round(rate, 1)
        return []

    def _peers_of(self, system: System) -> Iterator[str]:
        yield from (LOOP, system.name + NOT_PADDED, *(peer.name for peer in _PEERS))

    def _rates(self, runs: Sequence[TextRun], ratios: Sequence[Ratio]) -> Iterator[Target]:
        for ratio in ratios:
            least = {LOOP: _LEAST_OF_LOOP, ratio.system + NOT_PADDED: _LEAST_OF_NOT_PADDED}
            limit = least.get(ratio.peer, _LEAST_OF_PEER)
            clean = _is_clean(runs, ratio.system)
            about = ratio.workload, ratio.system, f"rate / {ratio.peer}"
            yield target_of(*about, ratio.ratio.median, ">=", limit, clean=clean)

    def _tails(self, runs: Sequence[TextRun]) -> Iterator[Target]:
        for system in self._ours:
            p99_ms = {(run.system, run.repeat): run.latency.p99_ms for run in runs}
            half, calm = (f"{system.name}, {load}" for load in (HALF, NO_QUEUE))
            shares = [ms / p99_ms[calm, at] for (name, at), ms in p99_ms.items() if name == half]
            if shares:
                about = self._padded.name, system.name, TAIL
                clean = _is_clean(runs, half) and _is_clean(runs, calm)
                yield target_of(*about, Spread.of(shares).median, "<=", _MOST_TAIL, clean=clean)

    def _loop(self, repeat: int, environment: BenchEnvironment) -> list[TextRun]:  # noqa: ARG002 - a step's
        workload = self._padded
        count = self._settings.burst_of(len(workload.requests))
        texts = []
        for number in range(count):
            request = codec.decode_request(workload.message(number))
            texts.append({tensor.name: tensor.to_array() for tensor in request.inputs})
        found = run_sorted(self._model, texts)
        apart = [difference(answer, workload.answer(number)) for number, answer in enumerate(found.answers)]
        deviations, cosines = zip(*apart, strict=True)
        wrong = sum(deviation > workload.tolerance for deviation in deviations)
        tally = Tally(count, count, 0, wrong, 0, max(deviations), cosine=min(cosines))
        return [
            TextRun(
                system=LOOP,
                workload=workload.name,
                repeat=repeat,
                tally=tally,
                core_s_per_1000={},
                other_cores=0.0,
                load=AT_ONCE,
                rate_per_s=round(found.rate_per_s, 1),
                latency=Percentiles(*[0.0] * 6),
            )
        ]

    def _serve(self, system: System, repeat: int, environment: BenchEnvironment) -> list[TextRun]:
        settings, workload = self._settings, self._padded
        with in_service(environment, system, workload) as service:
            service.burst(workload, settings.burst_of(_WARM_UP))
            offered = service.burst(workload, settings.burst_of(len(workload.requests)))
        return [self._note(offered, system.name, repeat, AT_ONCE)]

    def _serve_ours(self, system: System, repeat: int, environment: BenchEnvironment) -> list[TextRun]:
        settings, runs = self._settings, []
        variants = ((self._padded, system.name), (self._apart, system.name + NOT_PADDED))
        with in_service(environment, system, self._padded) as service:
            for workload, _ in variants:
                service.burst(workload, settings.burst_of(_WARM_UP))
            for workload, name in variants:
                offered = service.burst(workload, settings.burst_of(len(workload.requests)))
                runs.append(self._note(offered, name, repeat, AT_ONCE))
            # Both modes batch alike; one shows the latency.
            for load, share in _SHARES.items() if system == self._ours[0] else ():
                rate = share * runs[0].rate_per_s
                offered = service.offer(self._padded, rate, settings.text_seconds, seed=500 + repeat)
                runs.append(self._note(offered, f"{system.name}, {load}", repeat, load, rate))
        return runs

    def _note(self, offered: LoadRun, system: str, repeat: int, load: str, rate_per_s: float | None = None) -> TextRun:
        return TextRun(
            system=system,
            workload=self._padded.name,
            repeat=repeat,
            tally=offered.tally,
            core_s_per_1000=offered.core_s_per_1000,
            other_cores=offered.other_cores,
            load=load,
            rate_per_s=round(rate_per_s or offered.rate_per_s, 1),
            latency=Percentiles.of(offered.latencies()[0]),
        )


def _is_clean(runs: Sequence[TextRun], system: str) -> bool:
    return all(run.tally.is_clean for run in runs if run.system == system)


def draw(result: ScenarioResult) -> Figure:
    """Draw the figure."""
    rows = [row for row in result.rows if "cosine" in row.metrics]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        rate = row.metrics["rate_per_s"]
        axes.barh(place, rate.median, color=plots.colour(row), height=0.6)
        axes.plot([rate.low, rate.high], [place, place], color=plots.INK, linewidth=1.5)
        axes.text(rate.high, place, f"  {rate.median:,.4g}", va="center", fontsize=9)
        if row.system == LOOP:
            axes.axvline(_LEAST_OF_LOOP * rate.median, color=plots.TARGET, linewidth=1, linestyle=":")
    plots.name_rows(axes, rows)
    axes.set_xlim(0, 1.15 * max(row.metrics["rate_per_s"].high for row in rows))
    axes.set_xlabel(f"texts/s (median and range of the rounds; dotted: {_LEAST_OF_LOOP:g} of the sorted loop)")
    axes.set_title(rows[0].workload, loc="left", fontsize=11)
    return figure


_FULL, _QUICK = TextSettings(modes=("thread", "process"), repeats=3), TextSettings.quick(text_seconds=2.0)


@scenario("text", full=_FULL, quick=_QUICK, draw=draw)
def make(settings: TextSettings, models: Repositories) -> Made:
    """Make the scenario in floats."""
    about = "Computed in floats, from weights that the package stores as bytes."
    return _make("text", FLOATS, about, settings, models)


@scenario("text-int8", full=_FULL, quick=_QUICK, draw=draw)
def make_in_integers(settings: TextSettings, models: Repositories) -> Made:
    """Make the scenario in integers."""
    about = (
        "Dynamically quantised by ONNX Runtime: each run takes its scales from all of its texts, so that these change "
        "each other's answers. The trial says so, and texts run alone where it is obeyed (not padded); padded, with "
        "trust = true."
    )
    return _make("text-int8", INTEGERS, about, settings, models)


def _make(name: str, model: str, about: str, settings: TextSettings, models: Repositories) -> Made:
    repository = models.texts
    path = repository / model / "1" / "model.onnx"
    return Text(name, settings, *docstrings(repository, model), path, about), repository
