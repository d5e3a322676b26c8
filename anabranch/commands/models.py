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
    BatchingSummary,
    ModelSummary,
    decode_summaries,
    is_same,
    summarize,
)
from anabranch.schemas.model import Catalog, TensorSpec
from anabranch.schemas.tensors import show_axes
from anabranch.stack import local_stack as stack
from anabranch.stack.flink.rest import FlinkRest

State = Literal["served", "not_served", "changed", "only_in_job"]

_WORDS: dict[State, str] = {
    "served": "[green]served[/]",
    "not_served": "not served",
    "changed": "[yellow]changed since the job started[/]",
    "only_in_job": "[yellow]served, not in this repository[/]",
}

_COMPANY = {
    "strangers": "rows of any requests",
    "within request": "rows of one request",
    "whole": "whole requests, alone",
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
        parts = [escape(_parts(model))] if with_parts else []
        sides = (escape(_tensors(side)) for side in (model.inputs, model.outputs))
        table.add_row(escape(model.name), model.version, *state, *sides, _batching(model.batching), *parts)
    return table


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return "\n".join(
        f"{spec.name} {spec.datatype} {'[...]' if spec.any_rank else show_axes(spec.shape)}" for spec in specs
    )


def _batching(batching: BatchingSummary) -> str:
    verdict = batching.verdict
    seen = f" (differ by {verdict.deviation:.1g})" if verdict.deviation is not None else ""
    reason = "" if verdict.level == "strangers" and verdict.most_rows else f"\n{escape(verdict.reason)}"
    company = f"{_COMPANY[verdict.level]}{seen}{reason}"
    if not batching.is_batchable or (verdict.level == "within request" and not batching.fixed_rows):
        return company
    size = f"up to {batching.max_rows} rows" if batching.max_rows else "measured size"
    size = f"{batching.fixed_rows} rows, fixed" if batching.fixed_rows else size
    delay = f"\nwaits {batching.max_delay_ms:g} ms" if batching.max_delay_ms else ""
    return f"{company}\n{size}\nshards of {batching.shard_rows} rows{delay}"


def _parts(model: ModelSummary) -> str:
    if model.members:
        return f"{model.merge} of " + ", ".join(model.members)
    names = [
        f"{part.name or f'stage {number}'}{f' x {part.replicas}' if part.replicas > 1 else ''}"
        for number, part in enumerate(model.parts, 1)
    ]
    return " -> ".join(names)
