"""What is measured with what: every scenario with its workloads, models and peers."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from anabranch.demo.features import MODEL_NAME as MAGIKA
from bench.harness.analysis.stage_timing import PLAN, first_batch, generated
from bench.harness.settings import Settings
from bench.scenarios.balance import Balance
from bench.scenarios.base import Scenario
from bench.scenarios.burst import DEADLINES_MS, Burst
from bench.scenarios.cost import ROWS, Cost
from bench.scenarios.efficiency import FFNN_ROWS, Efficiency
from bench.scenarios.exchange import Exchange
from bench.scenarios.latency import Latency
from bench.scenarios.ledger import ExplainedLoad, Ledger
from bench.scenarios.memory import Memory
from bench.scenarios.overload import PRIORITIES, Overload
from bench.scenarios.pipeline import Case as Piped
from bench.scenarios.pipeline import Pipeline
from bench.scenarios.scaling import Scaling
from bench.scenarios.sustainable import Case, Sustainable
from bench.scenarios.throughput import Throughput
from bench.systems.registry import CONFLUENT, anabranch, naive_map
from bench.workloads.models import (
    LIGHT,
    RESNET,
    add_copies_in_stages,
    add_heavy,
    add_resnet50,
    in_stages,
    make_repository,
)
from bench.workloads.text_lines import add_recognizer, text_lines
from bench.workloads.workload import Workload, ffnn_rows, heavy_and_light, magika_files, resnet_pictures


class Repositories:
    """Repositories, made when they are asked for: a system loads every model of its own.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def small(self) -> Path:
        """The feed-forward network and Magika."""
        return make_repository(self._folder / "models")

    @cached_property
    def large(self) -> Path:
        """These, ResNet-50 and a text recognizer."""
        return add_recognizer(add_resnet50(make_repository(self._folder / "large-models")))

    @cached_property
    def unequal(self) -> Path:
        """The small ones, and a heavy network that takes what the light one takes."""
        return add_heavy(make_repository(self._folder / "unequal-models"))

    @cached_property
    def in_stages(self) -> Path:
        """Magika and ResNet-50, each whole and as a copy that is served in stages."""
        return add_copies_in_stages(add_resnet50(make_repository(self._folder / "models-in-stages")), PLAN)

    @cached_property
    def squeezenet(self) -> Path:
        """The graph of SqueezeNet, to be cut."""
        folder = self._folder / "squeezenet"
        folder.mkdir()
        return Path(shutil.copy(LIGHT / "light_squeezenet.onnx", folder / "model.onnx"))

    @cached_property
    def ffnn(self) -> Workload:
        """One row in each request."""
        return ffnn_rows(self.small)


Made = tuple[Scenario, Path]


def _latency(settings: Settings, models: Repositories) -> Made:
    return Latency(settings, models.ffnn, magika_files(models.small), models.small), models.small


def _throughput(settings: Settings, models: Repositories) -> Made:
    return Throughput(settings, models.ffnn, models.small), models.small


def _efficiency(settings: Settings, models: Repositories) -> Made:
    large = models.large
    workloads = ffnn_rows(large, FFNN_ROWS), magika_files(large), resnet_pictures(large), text_lines(large)
    return Efficiency(settings, *workloads, large), large


def _sustainable(settings: Settings, models: Repositories) -> Made:
    large, ours, naive = models.large, anabranch("thread"), naive_map("thread")
    cases = (
        Case(models.ffnn, 100_000, 200, (ours, naive, CONFLUENT)),
        Case(magika_files(large), 250, 25, (ours, CONFLUENT)),
        Case(ffnn_rows(large, FFNN_ROWS), 6_000, 100, (ours, CONFLUENT)),
        Case(resnet_pictures(large), 40, 3, (ours, CONFLUENT)),
        Case(text_lines(large), 200, 15, (ours, CONFLUENT)),
    )
    return Sustainable(settings, cases, large), large


def _ledger(settings: Settings, models: Repositories) -> Made:
    large = models.large
    accounts = (
        ExplainedLoad(ffnn_rows(large, explain=True), 200, 200_000),
        ExplainedLoad(ffnn_rows(large, FFNN_ROWS, explain=True), 100, 3_000),
        ExplainedLoad(magika_files(large, [{"explain": True}]), 25, 100),
        ExplainedLoad(resnet_pictures(large, explain=True), 3, 10),
        ExplainedLoad(text_lines(large, explain=True), 15, 60),
    )
    return Ledger(settings, accounts), large


def _cost(settings: Settings, models: Repositories) -> Made:
    return Cost(settings, {rows: ffnn_rows(models.small, rows) for rows in ROWS}), models.small


def _burst(settings: Settings, models: Repositories) -> Made:
    small = models.small
    classes = [{"priority": priority, "timeout": limit_ms * 1000} for priority, limit_ms in DEADLINES_MS.items()]
    urgent = replace(magika_files(small, classes), name="magika, 3 classes")
    return Burst(settings, magika_files(small), urgent), small


def _memory(settings: Settings, models: Repositories) -> Made:
    return Memory(settings, models.ffnn), models.small


def _overload(settings: Settings, models: Repositories) -> Made:
    magika = magika_files(models.small, [{"priority": priority} for priority in PRIORITIES])
    return Overload(settings, magika), models.small


def _exchange(settings: Settings, models: Repositories) -> Made:
    return Exchange(settings), models.small


def _scaling(settings: Settings, models: Repositories) -> Made:  # noqa: ARG001 - like the others
    return Scaling(models.large), models.large


def _balance(settings: Settings, models: Repositories) -> Made:
    unequal = models.unequal
    return Balance(settings, magika_files(unequal), heavy_and_light(unequal)), unequal


def _pipeline(settings: Settings, models: Repositories) -> Made:
    folder = models.in_stages
    pictures, files = (
        (make(folder, model=name), make(folder, model=in_stages(name)))
        for make, name in ((resnet_pictures, RESNET), (magika_files, MAGIKA))
    )
    cases = [
        Piped(name, folder / in_stages(name) / "1" / "model.onnx", first_batch(both[0]), *both, requests=requests)
        for name, both, requests in ((RESNET, pictures, 360), (MAGIKA, files, 1_350))
    ]
    squeezenet = Piped("squeezenet", models.squeezenet, generated(models.squeezenet, (1, 3, 224, 224)))
    return Pipeline(settings, [*cases, squeezenet]), folder


#: By name, in the order in which they run.
SCENARIOS: dict[str, Callable[[Settings, Repositories], Made]] = {
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
    "pipeline": _pipeline,
    "scaling": _scaling,
    "balance": _balance,
}
