"""`prepare`: cuts the models of a repository whose stages are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.flink_job.config import Config, load

if TYPE_CHECKING:
    from anabranch.flink_job.model_repository.stage_preparation import PreparationProgress
    from anabranch.schemas.model import Catalog

#: Shorter preparations show no progress bar.
_PATIENCE_S = 2.0


def prepare(
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", dir_okay=False, help="The job's TOML configuration.")
    ] = None,
    model_repository: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="The folder of the models. Default: as configured."),
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Cut the models whose model.toml asks for a number of stages, and prove that the stages equal them.

    `anabranch run` does the same before it submits a job. Prepare a repository by
    itself if the job will read it without write access.

      anabranch prepare --model-repository models
    """
    config = load(config_path)
    if model_repository:
        config = config.replace(models={"repository": str(model_repository)})
    catalog = prepare_models(config, Console(stderr=True), strict=True)
    prepared = [
        {
            "model": model.name,
            "version": model.version,
            "stages": len(model.stages),
            "folder": str(Path(model.stages[0].path).parent),
        }
        for model in catalog.in_stages()
        if not model.is_chain
    ]
    if output is OutputFormat.JSON:
        print_json(prepared)
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for each in prepared:
        console.print("{model}/{version}: {stages} stages in {folder}".format(**each))
    console.print("Every model is prepared.")


def prepare_models(config: Config, console: Console, *, strict: bool = False) -> Catalog:
    """Read the configured repository and prepare missing stages, with a progress bar.

    Raises:
        ConfigError: The repository cannot be used; a model cannot be cut, with `strict`.
        ModelLoadFailed: A model cannot be read, with `strict`.
    """
    from anabranch.flink_job.model_repository.stage_preparation import prepare_stages  # noqa: PLC0415 - ONNX is slow

    with _progress_bar(console) as report:
        catalog = prepare_stages(Path(config.models.repository), config.defaults, report, strict=strict)
    for line in _refused_company(catalog):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return catalog


def _refused_company(catalog: Catalog) -> Iterator[str]:
    """Yield a line for each model of which a trial, not the configuration, keeps requests apart."""
    for model in catalog.whole():
        if model.verdict.level != "strangers" and not model.fixed_rows and model.batching.enabled is not False:
            yield f"{model.name}/{model.version}: requests run alone: {model.verdict.reason}"


@contextmanager
def _progress_bar(console: Console) -> Iterator[PreparationProgress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("Reading the models", total=None)
    timer = Timer(_PATIENCE_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda model, done, step: bar.update(
            task, completed=done, total=1.0, description=f"Preparing {model}: {step}"
        )
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
