"""Model repositories of the benchmark, each made at its first use."""

import shutil
from functools import cached_property
from pathlib import Path

from anabranch.demo.features import MODEL_NAME as MAGIKA
from bench.harness.analysis.stage_timing import PLAN, cut_in_two
from bench.workloads.docstrings import add_padded, add_text_models
from bench.workloads.events import add_fraud
from bench.workloads.models import (
    LIGHT,
    RESNET,
    add_copies_in_stages,
    add_heavy,
    add_resnet50,
    in_stages,
    make_repository,
)
from bench.workloads.pages import add_detector
from bench.workloads.sentences import MINILM, add_minilm
from bench.workloads.text_lines import add_recognizer
from bench.workloads.workload import Workload, ffnn_rows


class Repositories:
    """Repositories, each made at its first use: a system loads all models of its repository."""

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
        """The small ones, and a heavy network with the light one's inputs."""
        return add_heavy(make_repository(self._folder / "unequal-models"))

    @cached_property
    def in_stages(self) -> Path:
        """Magika, ResNet-50 and MiniLM, each whole and as a copy that is served in stages."""
        repository = add_minilm(add_resnet50(make_repository(self._folder / "models-in-stages")))
        return add_copies_in_stages(repository, (MAGIKA, RESNET, MINILM), PLAN)

    @cached_property
    def texts(self) -> Path:
        """MiniLM in floats and in integers, each with and without padding."""
        return add_text_models(self._folder / "text-models")

    @cached_property
    def detector(self) -> Path:
        """A detector of text."""
        return add_detector(self._folder / "detector-models")

    @cached_property
    def mixed(self) -> Path:
        """One model of each workload."""
        repository = add_recognizer(add_resnet50(make_repository(self._folder / "mixed-models")))
        return add_detector(add_padded(repository))

    @cached_property
    def magika_in_stages(self) -> Path:
        """The small ones, and a copy of Magika that is served in two stages."""
        folder = add_copies_in_stages(make_repository(self._folder / "magika-in-stages"), (MAGIKA,), PLAN)
        cut_in_two(folder / in_stages(MAGIKA) / "1" / "model.onnx")
        return folder

    @cached_property
    def squeezenet(self) -> Path:
        """The graph of SqueezeNet, to be cut."""
        folder = self._folder / "squeezenet"
        folder.mkdir()
        return Path(shutil.copy(LIGHT / "light_squeezenet.onnx", folder / "model.onnx"))

    @cached_property
    def fraud(self) -> Path:
        """The model of payments alone."""
        return add_fraud(self._folder / "fraud-models")

    @cached_property
    def ffnn(self) -> Workload:
        """One row in each request."""
        return ffnn_rows(self.small)
