"""A model in two stages on two tasks beside the whole model on one, and other cuts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from statistics import median
from threading import Thread

import msgspec

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.schemas.tensors import Array
from bench.harness.analysis.stage_timing import (
    STAGES,
    Chosen,
    StageSessions,
    best_single_cut,
    cut_in_two,
    first_batch,
    generated,
)
from bench.harness.environment import BenchEnvironment
from bench.harness.preloaded import Preloaded, ThroughputRun
from bench.harness.settings import Settings
from bench.report.results import Run, keys_of, ratio_of, rows_of, target_of
from bench.scenarios.base import Conclusion, Made, Turn, scenario
from bench.systems.registry import anabranch
from bench.workloads.models import RESNET, in_stages
from bench.workloads.repositories import Repositories
from bench.workloads.sentences import MINILM, sentences
from bench.workloads.workload import Workload, magika_files, resnet_pictures

WHOLE, CUT = "whole, 1 task", f"{STAGES} stages, {STAGES} tasks"
_OF_BOUND, _OF_BOTH = "rate / bound of its slowest stage", "rate / bound, both stages at once"
_SPEED_UP = f"rate / {WHOLE}"
_PREDICTED, _BEST = "predicted / measured bottleneck, off by", "best single cut's bottleneck / the planner's"
_STAGE_RUNS = 25
#: Requests before the measured ones, as a multiple: the JVM's compiler works for a minute.
_WARM_UP = 2.5
#: Time of a turn, and of trying all cuts.
_TURN_S, _CUTS_S = 40.0, 90.0
#: Rounds in which cuts are timed in turn; 3 % is within the noise.
_CUT_ROUNDS, _LEAST_OF_BEST = 15, 0.97


class PipelineSettings(Settings, frozen=True, kw_only=True):
    """Settings of this scenario.

    Attributes:
        pipeline_share: Share of each model's requests.
    """

    pipeline_share: float = 1.0


@dataclass(frozen=True)
class CutCase:
    """A model to cut.

    Attributes:
        model: Its file.
        batch: One request's inputs.
        whole: Requests for the whole model; None if it is not served.
        cut: The same requests for the model in stages.
        requests: Measured requests.
        is_large: Two tasks should serve it faster than one.
    """

    name: str
    model: Path
    batch: Mapping[str, Array]
    whole: Workload | None = None
    cut: Workload | None = None
    requests: int = 0
    is_large: bool = False

    @cached_property
    def chosen(self) -> Chosen:
        """The planner's cut."""
        return cut_in_two(self.model)


class Pipeline:
    """Whole and in stages in turn; then where else the models might be cut."""

    name = "pipeline"
    method = (
        "As in throughput: all requests are in the topic before a system starts; one thread in each session. Whole: "
        "one task. In stages: a job with one task for each of two stages, which the planner cut from a profile taken "
        "just before. Bound: one request each time the slower stage has run, timed alone on one thread right before "
        "each round; or both stages timed while they run at once, as they do in the job, on cores that broker and job "
        "share with them. Single cuts (the 250 that are most even by the profile): the sessions of both stages of each "
        "are timed (twice; the best five and the planner's choice again in turn, "
        f"{_CUT_ROUNDS} times to find the best and as often to time it, each time "
        "after a run that only warms the caches up); the slower one counts."
    )

    def __init__(self, settings: PipelineSettings, cases: Sequence[CutCase]) -> None:
        self._settings = settings
        self._cases = cases
        self._system = anabranch(settings.modes[0])
        self._alone_ms: dict[tuple[str, int], float] = {}
        self._together_ms: dict[tuple[str, int], float] = {}
        self._cuts: dict[str, tuple[float, float, int]] = {}

    def steps(self) -> Iterator[Turn]:
        """Round by round; then the cuts."""
        served = [(case, *self._loads(case)) for case in self._cases if case.whole and case.cut]
        for repeat in range(self._settings.repeats):
            for case, whole, cut in served:
                label = f"pipeline, round {repeat + 1}: {case.name}"
                yield Turn(f"{label}, {WHOLE}", partial(self._serve, case, whole, WHOLE, repeat), _TURN_S, repeat)
                yield Turn(f"{label}, {CUT}", partial(self._serve, case, cut, CUT, repeat), _TURN_S, repeat)
        for case in self._cases:
            yield Turn(f"pipeline: every single cut of {case.name}", partial(self._try_cuts, case), _CUTS_S)

    def conclude(self, runs: Sequence[Run]) -> Conclusion:
        """Rates beside their bounds, and cuts beside others."""
        ours = [run for run in runs if isinstance(run, ThroughputRun)]
        rates = [run.rate_per_s for run in ours]
        shares = {
            name: [self._share(run, times) for run in ours]
            for name, times in (("of_bound", self._alone_ms), ("of_bound_together", self._together_ms))
        }
        rows = rows_of(ours, {"rate_per_s": rates} | shares, keys_of(ours))
        pairs = [ratio_of(ours, rates, CUT, WHOLE, case.name, "rate_per_s") for case in self._cases]
        ratios = [ratio for ratio in pairs if ratio]
        clean = {row.workload: not row.not_answered_right for row in rows if row.system == CUT}
        served = [
            (row.workload, metric, row.metrics[key].median, 0.85)
            for row in rows
            if row.system == CUT
            for metric, key in ((_OF_BOUND, "of_bound"), (_OF_BOTH, "of_bound_together"))
        ]
        large = [each for each in ratios if each.workload in {case.name for case in self._cases if case.is_large}]
        served += [(each.workload, _SPEED_UP, each.ratio.median, 1.6) for each in large]
        targets = [
            target_of(workload, CUT, metric, value, ">=", limit, clean=clean[workload])
            for workload, metric, value, limit in served
        ]
        limits = {}
        for case in self._cases:
            if case.name in self._cuts:
                least_ms, ours_ms, count = self._cuts[case.name]
                limits[f"{case.name}: least bottleneck of {count} single cuts, ms"] = round(least_ms, 3)
                limits[f"{case.name}: bottleneck of the planner's cut, ms"] = round(ours_ms, 3)
                limits[f"{case.name}: the same as predicted, ms"] = round(case.chosen.predicted_ms, 3)
                targets.append(target_of(case.name, CUT, _BEST, least_ms / ours_ms, ">=", _LEAST_OF_BEST, clean=True))
        targets += [
            target_of(case.name, CUT, _PREDICTED, median(off), "<=", 0.2, clean=True)
            for case in self._cases
            if (off := self._off(case))
        ]
        return Conclusion(rows, ratios, targets, limits)

    def _off(self, case: CutCase) -> list[float]:
        measured = [ms for (name, _), ms in self._alone_ms.items() if name == case.name]
        return [abs(case.chosen.predicted_ms / ms - 1) for ms in measured]

    def _share(self, run: ThroughputRun, times_ms: Mapping[tuple[str, int], float]) -> float:
        """Of the bound of its stages; of a model that is whole, of the same bound."""
        ms = times_ms.get((run.workload, run.repeat))
        return run.rate_per_s * ms / 1000 if ms else float("nan")

    def _loads(self, case: CutCase) -> tuple[Preloaded, Preloaded]:
        count = max(4, ceil(case.requests * self._settings.pipeline_share))
        assert case.whole is not None  # noqa: S101 - a case that is served has both
        assert case.cut is not None  # noqa: S101 - as above
        warm_up = ceil(count * _WARM_UP)
        return Preloaded(case.whole, count, warm_up), Preloaded(case.cut, count, warm_up)

    def _serve(
        self, case: CutCase, load: Preloaded, system: str, repeat: int, environment: BenchEnvironment
    ) -> list[ThroughputRun]:
        for each in self._cases:
            _ = each.chosen  # a job reads the plans of all its models
        if (case.name, repeat) not in self._alone_ms:
            self._alone_ms[case.name, repeat], self._together_ms[case.name, repeat] = _stage_times_ms(case)
        run = load.serve(self._system, repeat, environment)
        return [msgspec.structs.replace(run, system=system, workload=case.name)]

    def _try_cuts(self, case: CutCase, environment: BenchEnvironment) -> list[ThroughputRun]:  # noqa: ARG002 - a step's
        self._cuts[case.name] = best_single_cut(case.model, case.chosen, case.batch, _CUT_ROUNDS)
        return []


def _stage_times_ms(case: CutCase) -> tuple[float, float]:
    """Return the slower stage's time: alone, and while the other one runs too."""
    chain = StageSessions(case.chosen.folder, case.batch)
    alone_ms = chain.bottleneck_ms(_STAGE_RUNS)
    times: dict[int, list[float]] = {number: [] for number in range(STAGES)}

    def run(number: int) -> None:
        # The faster one goes on: the other is never alone.
        while min(map(len, times.values())) < _STAGE_RUNS:
            times[number].append(chain.run_ms(number))

    threads = [Thread(target=run, args=(number,)) for number in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return alone_ms, max(median(each) for each in times.values())


@scenario(Pipeline.name, full=PipelineSettings(), quick=PipelineSettings.quick(pipeline_share=0.05))
def make(settings: PipelineSettings, models: Repositories) -> Made:
    """Make the scenario."""
    folder = models.in_stages
    pictures, texts, files = (
        (make(folder, model=name), make(folder, model=in_stages(name)))
        for make, name in ((resnet_pictures, RESNET), (sentences, MINILM), (magika_files, MAGIKA))
    )
    cases = [
        CutCase(
            name,
            folder / in_stages(name) / "1" / "model.onnx",
            first_batch(both[0]),
            *both,
            requests=requests,
            is_large=is_large,
        )
        for name, both, requests, is_large in (
            (RESNET, pictures, 360, True),
            (MINILM, texts, 900, True),
            (MAGIKA, files, 1_350, False),
        )
    ]
    squeezenet = CutCase("squeezenet", models.squeezenet, generated(models.squeezenet, (1, 3, 224, 224)))
    return Pipeline(settings, [*cases, squeezenet]), folder
