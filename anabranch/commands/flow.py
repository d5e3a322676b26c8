"""`flow check` and `try`: run flows without Kafka and Flink."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.commands.output import PLAIN
from anabranch.errors import UnusableArgument
from anabranch.schemas.tensors import array_from_raw

_VALUES_SHOWN = 8
_PROGRESS_EVERY_S = 1.0

flow = typer.Typer(no_args_is_help=True, help="Check the flows of a configuration.")

_Configuration = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The job's TOML configuration.")]
_Topic = Annotated[
    str | None,
    typer.Option("--flow", metavar="TOPIC", help="Topic of the flow's events, if the file has several flows."),
]
_Repository = Annotated[
    Path | None, typer.Option(metavar="DIR", file_okay=False, help="Folder of the models. Default: as configured.")
]


@flow.command()
def check(
    file: _Configuration,
    sample: Annotated[str, typer.Option(metavar="FILE|-|TEXT", help="One event: a file, standard input or JSON text.")],
    topic: _Topic = None,
    model_repository: _Repository = None,
) -> None:
    """Show an event as the tensors of the model, and as the outgoing event.

    Runs the model in this process, without Kafka and Flink.

      anabranch flow check anabranch.toml --sample event.json
    """
    from anabranch.trial.flow_trial import FlowTrial  # noqa: PLC0415 - `--help` must be quick

    trial = FlowTrial(file, topic, model_repository)
    with _sample(sample) as given:
        event = trial.event(given)
    table = Table("input", "datatype", "shape", "first values", title_justify="left")
    for tensor, (raw, shape) in zip(trial.model.inputs, trial.compiled().read(event), strict=True):
        values = _first_values(tensor.datatype, raw, shape)
        table.add_row(escape(tensor.name), tensor.datatype, str(list(shape)), escape(values))
    console = Console(stderr=True)
    console.print(table)
    [outcome] = trial.run([event])
    if outcome.failure:
        raise UnusableArgument(f"the event becomes a dead letter, {outcome.failure}")
    spec = trial.spec
    route = f"{spec.topic} -> {spec.model_name}, version {spec.model_version} -> {spec.to}"
    console.print(route, markup=False, highlight=False)
    if outcome.key is not None:
        console.print(f"key: {outcome.key.decode(errors='replace')}", markup=False, highlight=False)
    if schema := trial.outgoing_schema():
        console.print(f"outgoing schema: {schema}", **PLAIN)
    sys.stdout.buffer.write(trial.show(outcome.value))


def try_flow(
    file: _Configuration,
    source: Annotated[
        str,
        typer.Option(
            "--input", metavar="FILE|-", help="Events: JSON in each line, or an Avro file; - for standard input."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Outgoing events. Default: standard output.")
    ] = None,
    letters: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Dead letters. Default: a line each on standard error."),
    ] = None,
    topic: _Topic = None,
    model_repository: _Repository = None,
) -> None:
    """Run the events of a file through a flow, without Kafka and Flink.

    The outgoing events are those of the job, in the order of the input. Deadlines
    are not applied.

      anabranch try anabranch.toml --input events.jsonl --output scored.jsonl
    """
    from anabranch.trial.flow_trial import FlowTrial  # noqa: PLC0415 - `--help` must be quick

    trial = FlowTrial(file, topic, model_repository)
    console = Console(stderr=True)
    good = bad = 0
    started_s = shown_s = monotonic()
    with _opened(source) as lines, _written(output) as events, _written(letters) as dead:
        for outcome in trial.run(trial.events(lines)):
            if not outcome.failure:
                good += 1
                events.write(trial.show(outcome.value))
            elif letters is not None:
                bad += 1
                dead.write(outcome.value + b"\n")
            else:
                bad += 1
                text = f"event {outcome.line}: {outcome.failure}"
                console.print(text, **PLAIN)
            if monotonic() - shown_s > _PROGRESS_EVERY_S:
                shown_s = monotonic()
                console.print(f"{good + bad} events", style="dim", highlight=False)
        events.flush()
    text = f"{good + bad} events in {monotonic() - started_s:.1f} s: {good} to {trial.spec.to}, {bad} dead letters"
    console.print(text, **PLAIN)


def _sample(sample: str) -> AbstractContextManager[BinaryIO]:
    is_text = sample.lstrip().startswith(("{", "["))
    return BytesIO(sample.encode()) if is_text else _opened(sample)


def _opened(source: str) -> AbstractContextManager[BinaryIO]:
    if source == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise UnusableArgument(
            f"cannot read {source!r} ({error.strerror}): give a file, or - for standard input"
        ) from None


def _written(path: Path | None) -> AbstractContextManager[BinaryIO]:
    if path is None:
        return nullcontext(sys.stdout.buffer)
    try:
        return path.open("wb")
    except OSError as error:
        raise UnusableArgument(f"cannot write {path} ({error.strerror}): give another file") from None


def _first_values(datatype: str, raw: bytes, shape: Sequence[int]) -> str:
    array = array_from_raw(datatype, shape, raw)
    values = array.ravel()[:_VALUES_SHOWN].tolist()
    shown = ", ".join(
        value.decode(errors="replace") if isinstance(value, bytes) else f"{value:.6g}" for value in values
    )
    return f"{shown}, …" if array.size > _VALUES_SHOWN else shown
