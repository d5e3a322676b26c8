"""Preparation of models with a number of stages: writes `stages-K/` beside new and changed models."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.errors import ConfigError, StagesNotPrepared
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.stages import UnpreparedModel
from anabranch.schemas.errors import AnabranchError
from anabranch.schemas.model import Catalog

#: Takes a model, the finished fraction and the next step.
PreparationProgress = Callable[[str, float, str], None]

#: Finished fractions of the work.
_PROFILED, _PLANNED = 0.6, 0.85


def prepare_stages(
    folder: Path, defaults: ModelDefaults, progress: PreparationProgress | None = None, *, strict: bool = False
) -> Catalog:
    """Read a repository; cut models without stages, and leave out those that cannot be cut.

    Raises:
        ConfigError: The repository is unusable; a model cannot be cut, with `strict`.
        ModelLoadFailed: A model cannot be read, with `strict`.
    """
    try:
        return read_repository(folder, defaults, strict=strict)
    except StagesNotPrepared as error:
        missing = error.models
    given_up: dict[str, AnabranchError] = {}
    for model in missing:
        try:
            _cut(model, progress or (lambda *_: None))
        except ConfigError as error:
            given_up[model.label] = error
    return read_repository(folder, defaults, given_up, strict=strict)


def _cut(model: UnpreparedModel, progress: PreparationProgress) -> None:
    # Other jobs do not need ONNX.
    from anabranch.partition.errors import PartitionError  # noqa: PLC0415
    from anabranch.partition.graph.model_graph import load_graph  # noqa: PLC0415
    from anabranch.partition.planning.placement import Machine  # noqa: PLC0415
    from anabranch.partition.planning.planner import plan_timed  # noqa: PLC0415
    from anabranch.partition.profiling.profile import costs_of, profile, rows_of, with_copies  # noqa: PLC0415
    from anabranch.partition.profiling.stage_timing import stage_times_ms  # noqa: PLC0415
    from anabranch.partition.stages.manifest import write_placement  # noqa: PLC0415

    def report(done: float, step: str) -> None:
        progress(model.label, done, step)

    _check_writable(model)
    try:
        report(0.0, "reading the model")
        graph = load_graph(model.path)
        known = profile(graph, rows_of(graph, 1), lambda done, step: report(done * _PROFILED, step))
        report(_PROFILED, "choosing cuts and timing stages")
        graph = with_copies(graph, known)
        time_stages = partial(stage_times_ms, graph, rows=known.rows)
        machines = [Machine(name="machine", count=model.stages)]
        _, plan = plan_timed(costs_of(graph, known), machines, model.stages, time_stages)
        report(_PLANNED, "writing stages and proving them equal")
        write_placement(graph, plan, model.folder, rows=known.rows)
        report(1.0, "done")
    except PartitionError as error:
        with suppress(OSError):
            model.folder.rmdir()
        raise ConfigError(f"{model.path} cannot be cut into {model.stages} stages: {error}") from None


def _check_writable(model: UnpreparedModel) -> None:
    """Make the folder before the slow profiling."""
    try:
        model.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{model.path} cannot be cut into {model.stages} stages: cannot write {model.folder}: {error.strerror}; "
            "run `anabranch prepare` on a machine that can write to the repository"
        ) from None
