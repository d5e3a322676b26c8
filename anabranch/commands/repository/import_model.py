"""`import`: converts a model of another framework, or takes an exported folder, and adds it to the repository."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anabranch.commands.output import Output, OutputFormat, print_json
from anabranch.importing.errors import VersionThere
from anabranch.importing.task import Task
from anabranch.schemas.model import ModelSpec, TensorSpec
from anabranch.schemas.tensors import show_axes

_EXPORT = "hf:"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A .pt2 of torch.export.save, MODULE:NAME of a torch.nn.Module (or of a function that gives one), "
            "a SavedModel's folder, a .keras or .h5 file, or hf:DIR for a folder that was exported from Hugging Face."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the model in the repository.")],
    version: Annotated[str, typer.Option(help="Version of the model. Default: the next number.")] = "",
    model_repository: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Model repository; made if it is missing.")
    ] = Path("models"),
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            exists=True,
            dir_okay=False,
            help="Inputs to compare on: an array for each input, by name.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=DTYPE[AXES]",
            help='Input of a torch.nn.Module without --sample: "x=float32[2,3,224,224]".',
        ),
    ] = None,
    python: Annotated[
        str,
        typer.Option(metavar="PYTHON", show_default=False, help="Interpreter with the framework. Default: this one."),
    ] = sys.executable,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of floats, absolute and relative.")
    ] = 1e-4,
    task: Annotated[Task | None, typer.Option(help="Purpose of the model in hf:DIR.")] = None,
    file: Annotated[str, typer.Option(metavar="PATH", help="ONNX file of hf:DIR, if it has several.")] = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Convert a PyTorch, TensorFlow or Keras model to ONNX and add it to the repository.

    The framework's own exporter converts it, in an interpreter that has the
    framework. The model is added only if ONNX Runtime gives the same outputs as the
    framework, on your sample or on generated inputs.

      anabranch import net.pt2 --name net --python TORCH/bin/python

      anabranch import package:Net --name net --input "x=float32[2,3,224,224]"

      anabranch import saved_model/ --name net --python TENSORFLOW/bin/python

    TORCH and TENSORFLOW are environments with torch and onnxscript, or with
    tensorflow-cpu and tf2onnx: PyFlink needs other versions of their packages.

    A folder with an ONNX file, its tokenizer.json or preprocessor_config.json and
    its config.json becomes a chain, which takes texts or pictures:

      anabranch import hf:DIR --task feature-extraction --name sentences
    """
    for option, value in (("--name", name), ("--version", version or "1")):
        if not _NAME.fullmatch(value):
            raise typer.BadParameter(f"{option} {value!r} cannot be a folder: use letters, digits, '.', '_' and '-'")
    folder = model_repository / name
    if source.startswith(_EXPORT):
        if task is None:
            raise typer.BadParameter(f"{source} needs --task; available: {', '.join(Task)}")
        if version or sample or inputs:
            raise typer.BadParameter(f"{source} has no version, and takes neither --sample nor --input: leave them out")
        _take_export(source, task, file, folder, output)
        return
    if task is not None or file:
        raise typer.BadParameter(f"--task and --file are for hf:DIR, but the source is {source}: leave them out")
    version = version or _next_version(folder)
    if (folder / version).exists():
        raise VersionThere(f"{folder / version} already exists: leave --version out for the next number")

    from anabranch.importing.conversion import CASES, MODEL, convert, framework_of  # noqa: PLC0415 - `--help` must be quick
    from anabranch.importing.parity import largest_difference, read_cases  # noqa: PLC0415 - likewise
    from anabranch.operators.backends.onnx import OnnxBackend, read_signature, sha256_of  # noqa: PLC0415 - likewise

    console = Console(stderr=True)
    framework = framework_of(source)
    with tempfile.TemporaryDirectory(prefix="anabranch-import-") as scratch:
        out = Path(scratch)
        with console.status(f"Converting with {framework.name}"):
            convert(framework, source, out, python, sample=sample, inputs=inputs or ())
        with console.status("Comparing ONNX Runtime with the framework"):
            path = out / MODEL
            taken, given = read_signature(path)
            spec = ModelSpec(name, version, str(path), sha256_of(path), taken, given)
            cases = read_cases(sorted(out.glob(CASES)))
            difference = largest_difference(OnnxBackend().load(spec), cases, tolerance)
        _put(path, folder / version / MODEL)
    if output is OutputFormat.JSON:
        print_json(
            {
                "model": name,
                "version": version,
                "path": str(folder / version / MODEL),
                "framework": framework.name,
                "cases": len(cases),
                "largest_difference": float(difference),
                "inputs": taken,
                "outputs": given,
            }
        )
        return
    Console().print(_picture(taken, given))
    runs = "1 run" if len(cases) == 1 else f"{len(cases)} runs"
    Console().print(
        f"{folder / version / MODEL}: equal to {framework.name} in {runs}, within {difference:.2g}",
        soft_wrap=True,
        highlight=False,
    )
    match list({spec.shape[0] if spec.shape else None for spec in (*taken, *given)}):
        case [int(rows)]:
            console.print(f"Axis 0 has a fixed size: requests need {rows} rows or a multiple.")


def _take_export(source: str, task: Task, file: str, folder: Path, output: OutputFormat) -> None:
    """Write the chain of an exported folder, and read it as a job does."""
    from anabranch.importing.hugging_face import add_export  # noqa: PLC0415 - `--help` must be quick

    with Console(stderr=True).status("Reading the export, and trying its model"):
        model = add_export(Path(source.removeprefix(_EXPORT)), task, file, folder)
    if output is OutputFormat.JSON:
        print_json(
            {
                "model": model.name,
                "path": str(folder),
                "task": task,
                "inputs": model.inputs,
                "outputs": model.outputs,
                "batching": model.verdict.reason,
            }
        )
        return
    console = Console()
    console.print(_picture(model.inputs, model.outputs))
    console.print(f"{folder / 'model.toml'}: {model.verdict.reason}", soft_wrap=True, highlight=False, markup=False)


def _next_version(folder: Path) -> str:
    numbers = [int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
    return str(max(numbers, default=0) + 1)


def _put(path: Path, target: Path) -> None:
    """Add the model in one step: a job that starts meanwhile must not read half a model."""
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target.parent.parent) as folder:
        version = Path(folder) / "version"
        version.mkdir()
        shutil.copyfile(path, version / target.name)
        version.rename(target.parent)


def _picture(taken: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> Table:
    table = Table("tensor", "datatype", "shape")
    for side, specs in (("in", taken), ("out", given)):
        for spec in specs:
            table.add_row(f"{side}  {spec.name}", spec.datatype, show_axes(spec.shape).replace("[", r"\["))
    return table
