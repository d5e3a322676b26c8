"""`infer`: sends one request and prints the answer."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.commands.output import PLAIN, Output, OutputFormat
from anabranch.commands.stack import DataDir
from anabranch.errors import UnusableArgument
from anabranch.flink_job.config import Config, load
from anabranch.result import Result
from anabranch.schemas.latency_breakdown import SUFFIX
from anabranch.schemas.messages import Encoding, InferRequest, InferResponse, Parameter
from anabranch.schemas.tensors import Array, Tensor, datatype_of
from anabranch.schemas.wire import codec
from anabranch.stack import local_stack as stack

StackServers = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Kafka broker. Default: the local stack's.")
]
TopicsConfig = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The job's configuration, for its topics and limits."),
]
# NAME=FILE, but not a path that has an equals sign in one of its folders.
_NAMED = re.compile(r"([^=/]+)=(.+)")
_VALUES_SHOWN = 6
_BAR_WIDTH = 40


class _RequestArguments(msgspec.Struct):
    """Content of the request.

    Attributes:
        arrays: Arrays by input name; the name is empty if the command line has none.
    """

    arrays: dict[str, Array]
    version: str = ""
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Parameter] = {}


def infer(
    model: Annotated[str, typer.Argument(help="Name of the model; `anabranch models` lists them.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="[NAME=]FILE.npy",
            help="Array of an input, with the batch in axis 0; repeat it for each input. "
            "A model with one input needs no NAME.",
        ),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-|TEXT",
            help="JSON request instead of --input, from a file, from standard input, or as text: "
            '{"inputs": [{"name", "shape", "datatype", "data"}]}.',
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the model. Default: the newest.")] = "",
    outputs: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="NAME", help="Output to answer with; may be repeated. Default: all."),
    ] = None,
    priority: Annotated[int, typer.Option(min=0, help="1 is the highest; 0 takes the job's default.")] = 0,
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", min=0, help="Time after which the job answers with an error.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the time of each phase, and the tasks that shared the rows.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0, help="Time to wait for the answer.")] = 30,
    bootstrap_servers: StackServers = None,
    config_path: TopicsConfig = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Write each output to DIR/NAME.npy, too.")
    ] = None,
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Send one request to the running job and print the answer.

    Inputs are .npy files of numpy.save, or a JSON request of the Open Inference
    Protocol.

      anabranch infer digits --input image.npy

      anabranch infer digits --request request.json -o json
    """
    if inputs and request is not None:
        raise typer.BadParameter("--input and --request exclude each other: give one of them")
    if not inputs and request is None:
        raise typer.BadParameter("the request has no inputs: give --input for each input of the model, or --request")
    from anabranch.client import Client  # noqa: PLC0415 - imports Kafka, which takes half a second

    arguments = _RequestArguments(_read_files(inputs)) if inputs else _read_request(request or "")
    config = client_config(config_path, bootstrap_servers, data_dir)
    with Client.for_job(config, timeout_s=timeout_s) as client:
        result = client.infer(
            model,
            arguments.arrays,
            version=version or arguments.version,
            outputs=outputs or arguments.outputs,
            priority=priority,
            deadline_ms=deadline_ms,
            parameters=arguments.parameters | ({"explain": True} if explain else {}),
        )
    if output_dir:
        _write_files(output_dir, result)
    if output is OutputFormat.JSON:
        typer.echo(codec.encode_response(_response(result), Encoding.JSON))
    else:
        _print(result, output_dir)


def client_config(config_path: Path | None, bootstrap_servers: str | None, data_dir: Path | None) -> Config:
    """Return the configuration of the job that a client asks: the one given, or the local stack's."""
    config = load(config_path)
    if not bootstrap_servers and not config_path:
        bootstrap_servers = stack.status(stack.data_dir(data_dir)).bootstrap_servers
    return config.replace(kafka={"bootstrap_servers": bootstrap_servers}) if bootstrap_servers else config


def _read_files(inputs: list[str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for text in inputs:
        named = _NAMED.fullmatch(text)
        name, path = named.groups() if named else ("", text)
        if name in arrays:
            found = f"--input {name!r} is given twice" if name else "several --input have no name"
            raise UnusableArgument(f"{found}: give each input once, as NAME=FILE.npy")
        try:
            loaded = np.load(path, allow_pickle=False)
        except OSError as error:
            raise UnusableArgument(f"cannot read {path} ({error.strerror or error}): give a .npy file") from None
        except (ValueError, EOFError) as error:
            raise UnusableArgument(
                f"{path} is not a .npy file ({error}): write it with numpy.save, without pickled objects"
            ) from None
        if not isinstance(loaded, np.ndarray):
            raise UnusableArgument(f"{path} holds several arrays (.npz): save each array as a .npy file")
        arrays[name] = loaded
    return arrays


def _read_request(source: str) -> _RequestArguments:
    decoded: InferRequest = codec.decode_request(_request_text(source).strip().encode())
    if decoded.encoding is not Encoding.JSON:
        raise UnusableArgument('--request is not a JSON object: write {"inputs": […]}')
    return _RequestArguments(
        {tensor.name: tensor.to_array() for tensor in decoded.inputs},
        decoded.model_version,
        decoded.outputs,
        dict(decoded.parameters),
    )


def _request_text(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    if source.lstrip().startswith(("{", "[")):
        return source
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnusableArgument(
            f"cannot read --request {source!r} ({reason}): give a file, JSON text, or - for standard input"
        ) from None


def _response(result: Result) -> InferResponse:
    tensors = tuple(Tensor.from_array(name, array) for name, array in result.items())
    return InferResponse(result.model_name, result.model_version, result.id, tensors, result.parameters)


def _write_files(folder: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in result.items():
        # NumPy writes object arrays as pickles only.
        plain = array.astype(np.bytes_) if array.dtype == object else array
        np.save(folder / f"{_file_name(name)}.npy", plain, allow_pickle=False)


def _file_name(output: str) -> str:
    return re.sub(r"[^\w.-]", "_", output) or "output"


def _print(result: Result, output_dir: Path | None) -> None:
    table = Table("output", "datatype", "shape", "first values", title_justify="left")
    for name, array in result.items():
        table.add_row(escape(name), datatype_of(array.dtype), str(list(array.shape)), escape(_first_values(array)))
    console = Console()
    console.print(table)
    console.print(
        f"{result.model_name}, version {result.model_version}: {result.latency_ms:.1f} ms",
        markup=False,
        highlight=False,
    )
    _print_breakdown(console, result.breakdown_ms)
    for name, value in result.parameters.items():
        if name.removesuffix(SUFFIX) in result.breakdown_ms:
            continue
        console.print(f"{name}: {value}", **PLAIN)
    if output_dir:
        console.print(f"Written to {output_dir}", **PLAIN)


def _print_breakdown(console: Console, breakdown_ms: Mapping[str, float]) -> None:
    if not breakdown_ms:
        return
    table = Table(box=None, show_header=False, padding=(0, 1))
    longest_ms = max(breakdown_ms.values()) or 1.0
    for stage, spent_ms in breakdown_ms.items():
        table.add_row(stage, f"{spent_ms:.2f} ms", "█" * round(_BAR_WIDTH * spent_ms / longest_ms))
    console.print(table)


def _first_values(array: Array) -> str:
    values: list[Any] = array.ravel()[:_VALUES_SHOWN].tolist()
    shown = ", ".join(f"{value:.5g}" if isinstance(value, float) else _text(value) for value in values)
    return f"{shown}, …" if array.size > _VALUES_SHOWN else shown


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
