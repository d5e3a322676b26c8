"""`models`: lists the models of the repository and of the running job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.commands.stack import DataDir
from anabranch.flink_job.config import Config, load
from anabranch.flink_job.model_summary import (
    JOB_PARAMETER,
    ModelSummary,
    decode_summaries,
    is_same,
    summarize,
)
from anabranch.jobs.descriptions import batching_lines, parts_line, tensor_line
from anabranch.schemas.model import Catalog
from anabranch.stack import local_stack as stack
from anabranch.stack.flink.rest import FlinkRest

State = Literal["served", "not_served", "changed", "only_in_job"]

_WORDS: dict[State, str] = {
    "served": "[green]served[/]",
    "not_served": "not served",
    "changed": "[yellow]changed since the job started[/]",
    "only_in_job": "[yellow]served, not in this repository[/]",
}


class ServingJob(msgspec.Struct, frozen=True, kw_only=True):
    """A running job and its models."""

    job_id: str
    name: str
    models: list[ModelSummary]


class ListedModel(ModelSummary, frozen=True, kw_only=True):
    """A model and its state; the state is None if no job runs."""

    state: State | None


def models(
    model_repository: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Folder of the models. Default: as configured."),
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", dir_okay=False, help="The job's TOML configuration.")
    ] = None,
    flink_url: Annotated[
        str | None, typer.Option(metavar="URL", help="REST address of Flink. Default: the local stack's, if it runs.")
    ] = None,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the models of the repository and of the running job, with their signatures.

    Works without a running stack. With one, the list says for each model whether
    the job serves it, and whether its files changed since the job started.
    A trial of each model decides whose rows share a batch.

      anabranch models --model-repository models
    """
    config = load(config_path)
    folder = model_repository or Path(config.models.repository)
    flink_url = flink_url or stack.status(stack.data_dir(data_dir)).flink_url
    job = find_job(FlinkRest(flink_url)) if flink_url else None
    # The job's models are listed without the default folder, too.
    is_optional = job is not None and model_repository is None and config_path is None
    with Console(stderr=True).status("Reading the models; a new one is tried first"):
        catalog = Catalog({}) if is_optional and not folder.is_dir() else _read(folder, config)
    listed = compare(summarize(catalog), job)
    if output is OutputFormat.JSON:
        named = {"job_id": job.job_id, "name": job.name} if job else None
        print_json({"repository": str(folder.resolve()), "job": named, "models": listed, **_others(catalog)})
        return
    console = Console()
    console.print(_table(listed))
    for left_out in catalog.left_out:
        console.print(
            f"Cannot be served: {left_out.label}: {left_out.reason}", style="red", markup=False, soft_wrap=True
        )
    if catalog.ignored:
        console.print(f"Ignored folders: {', '.join(catalog.ignored)}", markup=False, soft_wrap=True)
    console.print(
        f"Repository: {folder.resolve()}. {_advice(listed, job)}.", soft_wrap=True, highlight=False, markup=False
    )


def find_job(rest: FlinkRest) -> ServingJob | None:
    """Return the newest running job that serves models.

    Raises:
        StackError: The cluster does not answer.
    """
    for job in rest.jobs():
        text = rest.job_parameters(job.job_id).get(JOB_PARAMETER) if job.state == "RUNNING" else None
        if text:
            return ServingJob(job_id=job.job_id, name=job.name, models=decode_summaries(text))
    return None


def compare(held: Sequence[ModelSummary], job: ServingJob | None) -> list[ListedModel]:
    """Return the models of the repository and the job, each with its state."""
    if job is None:
        return [_listed(model, None) for model in held]
    served = {(model.name, model.version): model for model in job.models}
    listed = []
    for model in held:
        other = served.pop((model.name, model.version), None)
        state: State = "not_served" if other is None else "served" if is_same(other, model) else "changed"
        listed.append(_listed(model, state))
    return sorted([*listed, *(_listed(model, "only_in_job") for model in served.values())], key=lambda each: each.name)


def _read(folder: Path, config: Config) -> Catalog:
    from anabranch.flink_job.model_repository.repository import read_repository  # noqa: PLC0415 - imports ONNX Runtime

    return read_repository(folder, config.defaults)


def _others(catalog: Catalog) -> dict[str, object]:
    return {"left_out": catalog.left_out, "ignored": catalog.ignored}


def _listed(model: ModelSummary, state: State | None) -> ListedModel:
    return ListedModel(**msgspec.structs.asdict(model), state=state)


def _advice(listed: Sequence[ListedModel], job: ServingJob | None) -> str:
    if job is None:
        return "No job runs: start one with `anabranch run`"
    stale = sum(model.state in {"not_served", "changed"} for model in listed)
    served = f"The job {job.name} serves {len(job.models)}"
    return f"{served}; start it again to serve {stale} new or changed" if stale else served


def _table(listed: Sequence[ListedModel]) -> Table:
    with_state = any(model.state for model in listed)
    with_parts = any(model.parts or model.members for model in listed)
    names = ["model", "version", *(["job"] if with_state else []), "inputs", "outputs", "batching"]
    table = Table(*names, *(["made of"] if with_parts else []))
    for model in listed:
        state = [_WORDS[model.state]] if model.state else []
        parts = [escape(parts_line(model))] if with_parts else []
        sides = (escape("\n".join(map(tensor_line, side))) for side in (model.inputs, model.outputs))
        batching = escape("\n".join(batching_lines(model.batching)))
        table.add_row(escape(model.name), model.version, *state, *sides, batching, *parts)
    return table
