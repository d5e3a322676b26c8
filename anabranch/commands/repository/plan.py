"""`plan`: cuts a model into stages for several machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.flink_job.model_repository.repository import version_files
from anabranch.partition.errors import PlanNotWritten, UnreadableModel

if TYPE_CHECKING:
    from anabranch.partition.planning.placement import Machine, Placement
    from anabranch.partition.profiling.profile import Profile
    from anabranch.partition.profiling.profile import Progress as Report
    from anabranch.partition.stages.equivalence import Proof


def plan(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="ONNX file, or folder of a model or version in a repository."),
    ],
    stages: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Number of stages. Without --machines: on K machines like this one."),
    ] = None,
    machines: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Machines: speed, memory, link, count; see examples/machines.toml."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of a batch; a model with a fixed batch size keeps that size.")
    ] = 1,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw the plan to this file.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Folder of stages and plan.json. Default: MODEL-stages."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Batch to time and compare the stages on. Default: random values."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Profile the model again, after changes of this machine or its load.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Cut a model into stages that run as a pipeline on several machines, and prove that they equal it.

    Profiles the model on this machine (once, see --fresh), then cuts it so that
    the slowest stage or transfer is as fast as possible. Slow stages get
    replicas while machines are left. If the whole model fits on every machine,
    replicas of all of it are best: use --stages to cut it nevertheless. A model
    too large for every machine is cut into stages that fit.

    The last line of the output is the line for the model.toml of a model of a
    repository: stages = "model-stages/plan.json".

      anabranch plan model.onnx --stages 3 --svg plan.svg

      anabranch plan models/my-model --machines machines.toml --rows 8
    """
    if stages is None and machines is None:
        raise typer.BadParameter("neither --stages nor --machines is given: give --stages K, --machines FILE, or both")
    # `--help` must be quick.
    from anabranch.partition.graph.model_graph import load_graph  # noqa: PLC0415
    from anabranch.partition.planning.machines_file import read_machines  # noqa: PLC0415
    from anabranch.partition.planning.placement import Machine  # noqa: PLC0415
    from anabranch.partition.planning.planner import plan_timed  # noqa: PLC0415
    from anabranch.partition.profiling.inputs import read_inputs  # noqa: PLC0415
    from anabranch.partition.profiling.profile import costs_of, profile, rows_of, with_copies  # noqa: PLC0415
    from anabranch.partition.profiling.stage_timing import stage_times_ms  # noqa: PLC0415
    from anabranch.partition.report.svg import draw  # noqa: PLC0415
    from anabranch.partition.stages.manifest import PLAN_FILE, write_placement  # noqa: PLC0415

    console, errors = Console(), Console(stderr=True)
    kinds = read_machines(machines) if machines else (Machine(name="machine", count=stages or 1),)
    path = _file_of(model)
    with errors.status("Reading the model"):
        graph = load_graph(path)
        batch = read_inputs(inputs, graph) if inputs else None
    with _bar(errors) as progress:
        known = profile(graph, rows_of(graph, rows, batch), progress, batch, again=fresh)
    with errors.status("Choosing cuts and machines, and timing the stages"):
        graph = with_copies(graph, known)
        time_stages = partial(stage_times_ms, graph, rows=known.rows, batch=batch)
        costs, placement = plan_timed(costs_of(graph, known), kinds, stages, time_stages)
    title = path.name if path == model else f"{model.resolve().name}, {path.parent.name}"
    folder = out or path.with_name(f"{path.stem}-stages")
    with errors.status("Writing the stages, and comparing them with the model"):
        batches = [batch] if batch else []
        _, proof = write_placement(graph, placement, folder, rows=known.rows, batches=batches)
    if svg:
        try:
            svg.write_text(draw(graph, costs, placement, title=title))
        except OSError as error:
            raise PlanNotWritten(f"cannot write {svg}: {error.strerror}") from None
    served = _line_of(path, folder / PLAN_FILE) if path != model else ""
    if output is OutputFormat.JSON:
        print_json(_summary(placement, known, folder / PLAN_FILE, proof, served))
        return
    console.print(_table(placement, title))
    lines = list(_verdict(placement, known, kinds))
    lines += [f"Drawn: {svg}"] if svg else []
    lines.append(f"Written after a comparison with the model on {_comparison(proof)}: {folder}")
    lines += [f"Served by the line: {served}"] if served else []
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _file_of(model: Path) -> Path:
    """Return the ONNX file of a model; of a repository's folder, that of the newest version."""
    if not model.is_dir():
        return model
    found = [*version_files(model), *model.glob("model.onnx")]
    if not found:
        raise UnreadableModel(f"no model in {model}: give an ONNX file, or a folder with NUMBER/model.onnx")
    return found[-1]


def _line_of(path: Path, manifest: Path) -> str:
    """Return the line that serves the stages, and the path of its `model.toml`."""
    version, manifest = path.resolve().parent, manifest.resolve()
    chosen = manifest.relative_to(version) if manifest.is_relative_to(version) else manifest
    return f'stages = "{chosen}" in {version.parent / "model.toml"}'


@contextmanager
def _bar(console: Console) -> Iterator[Report]:
    columns = (SpinnerColumn(), TextColumn("Profiling: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda done, following: bar.update(task, completed=done, description=following)


def _table(placement: Placement, title: str) -> Table:
    from anabranch.partition.report.svg import crew_of, size_of  # noqa: PLC0415 - `--help` must be quick

    table = Table(title=title, title_justify="left")
    for name in ("stage", "nodes", "ms", "weights", "sends", "every"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("replicas")
    for number, stage in enumerate(placement.stages):
        table.add_row(
            str(number),
            str(len(stage.nodes)),
            _ms(stage.ms),
            size_of(stage.parameter_bytes),
            size_of(stage.output_bytes) if number < len(placement.stages) - 1 else "answers",
            f"{_ms(stage.period_ms)} ms",
            crew_of(stage),
            style="bold" if stage.period_ms == placement.bottleneck_ms else None,
        )
    return table


def _comparison(proof: Proof) -> str:
    count = "1 batch" if proof.batches == 1 else f"{proof.batches} batches"
    return f"{count}, within {proof.largest_difference:.2g}" if proof.largest_difference else count


def _summary(placement: Placement, known: Profile, manifest: Path, proof: Proof, served: str) -> dict[str, object]:
    """Return the plan as JSON shows it."""
    return {
        "stages": [
            {
                "nodes": len(stage.nodes),
                "ms": stage.ms,
                "period_ms": stage.period_ms,
                "parameter_bytes": stage.parameter_bytes,
                "output_bytes": stage.output_bytes,
                "replicas": [machine.name for machine in stage.replicas],
                "limited_by": stage.held_up_by,
            }
            for stage in placement.stages
        ],
        "rows": known.rows,
        "bottleneck_ms": placement.bottleneck_ms,
        "latency_ms": placement.latency_ms,
        "whole_model_ms": known.run_ms,
        "is_optimal": placement.exact,
        "manifest": str(manifest),
        "model_toml": served or None,
        "compared_batches": proof.batches,
        "largest_difference": float(proof.largest_difference),
    }


def _verdict(placement: Placement, known: Profile, kinds: tuple[Machine, ...]) -> Iterator[str]:
    period_ms, spare = placement.bottleneck_ms, sum(kind.count for kind in kinds) - placement.machine_count
    used = "1 machine" if placement.machine_count == 1 else f"{placement.machine_count} machines"
    used += f" ({spare} left over)" if spare else ""
    yield (
        f"Predicted on {used}: {_rate(known.rows, period_ms)} rows/s, a batch of {known.rows} every "
        f"{_ms(period_ms)} ms, each after {_ms(placement.latency_ms)} ms. "
        f"The whole model on this machine: {_rate(known.rows, known.run_ms)} rows/s, {_ms(known.run_ms)} ms."
    )
    slowest = max(placement.stages, key=lambda stage: stage.period_ms)
    yield f"The bottleneck is stage {placement.stages.index(slowest)}: {slowest.held_up_by}."
    if len(placement.stages) == 1 and placement.machine_count > 1:
        where = "on these" if spare else "on every machine"
        yield f"The model fits {where}, so replicas of the whole model are best: nothing has to travel."
    if not placement.exact:
        from anabranch.partition.planning.placement import even_ms  # noqa: PLC0415

        even = even_ms(sum(stage.ms for stage in placement.stages), kinds)
        yield (
            "There are too many plans to compare them all: a better one may exist. "
            f"Even stages would take {_ms(even)} ms."
        )


def _ms(ms: float) -> str:
    """Format a time with the digits that people need."""
    return f"{ms:.2f}" if ms >= 1 or not ms else f"{ms:.3g}"


def _rate(rows: int, period_ms: float) -> str:
    return f"{1000 * rows / period_ms:,.1f}" if period_ms else "any number of"
