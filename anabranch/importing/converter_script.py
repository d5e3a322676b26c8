"""Script for an interpreter with PyTorch or TensorFlow: converts a model to ONNX, and runs it on cases.

    python converter_script.py pytorch SOURCE OUT [--sample FILE.npz] [--input NAME=DTYPE[2,3]]…
    python converter_script.py tensorflow SOURCE OUT [--sample FILE.npz]

SOURCE is a file of `torch.export.save`, MODULE:NAME of a `torch.nn.Module` or of a function that returns one, a
SavedModel's folder, or a Keras file. Writes `OUT/model.onnx` and `OUT/case-0.npz`, …, with arrays `in/NAME` and
`out/NAME`. Exit codes: 3 for a missing framework, 4 for a refused model; the last line of stderr says why.
"""

import argparse
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MISSING, REFUSED = 3, 4
#: Rows of the cases, if the model takes any number: many kernels compute a single row differently.
_ROWS = (1, 3)
_OPSET = "18"
_SIGNATURE = "serving_default"


_Arrays = dict[str, Any]
_Convert = Callable[[str, Path, _Arrays, list[str]], None]


class _Refused(Exception):
    """The model cannot be converted; the message is one line."""


def main() -> None:
    """Convert the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=("pytorch", "tensorflow"))
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sample", type=Path)
    parser.add_argument("--input", action="append", default=[])
    arguments = parser.parse_args()
    try:
        convert = _pytorch() if arguments.framework == "pytorch" else _tensorflow()
    except ImportError as error:
        sys.exit(_say(MISSING, str(error)))
    try:
        convert(arguments.source, arguments.out, _read_sample(arguments.sample), arguments.input)
    except _Refused as error:
        sys.exit(_say(REFUSED, str(error)))
    except Exception as error:  # noqa: BLE001 - shows the message of the exporter
        sys.exit(_say(REFUSED, f"{type(error).__name__}: {error}"))


def _pytorch() -> _Convert:
    import onnxscript  # noqa: F401, PLC0415 - torch's exporter needs it later
    import torch  # noqa: PLC0415 - only this script's own interpreter has it

    torch.manual_seed(0)
    return lambda *arguments: convert_pytorch(torch, *arguments)


def _tensorflow() -> _Convert:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import tensorflow as tf  # noqa: PLC0415 - only this script's own interpreter has it
    import tf2onnx  # noqa: F401, PLC0415 - likewise

    return lambda *arguments: convert_tensorflow(tf, *arguments)


def convert_pytorch(torch: Any, source: str, out: Path, sample: _Arrays, inputs: list[str]) -> None:
    """Write the model and its cases, with PyTorch."""
    path = Path(source)
    given = {name: torch.from_numpy(array) for name, array in sample.items()} or _generated(torch, inputs)
    if path.suffix == ".pt2" or path.is_file():
        program = torch.export.load(path)
        given = given or _example_of(torch, program)
    else:
        program = _export(torch, _module(torch, source), given)
    names = list(program.graph_signature.user_inputs)
    if len(names) != len(given):
        raise _Refused(f"{len(given)} inputs are given, expected {len(names)}: give {', '.join(names)}")
    given = dict(zip(names, _ordered(given, names), strict=True))
    module = program.module()
    outputs = _outputs_of(torch, module(*given.values()))
    exported = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=list(outputs), external_data=False, verbose=False
    )
    exported.save(out / "model.onnx")
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    free = all(values[name].ndim and not isinstance(values[name].shape[0], int) for name in names)
    cases = [given, *({name: torch.cat([each] * max(_ROWS))[:rows] for name, each in given.items()} for rows in _ROWS)]
    for number, case in enumerate(cases if free else cases[:1]):
        results = _outputs_of(torch, module(*case.values()))
        _write_case(out / f"case-{number}.npz", _numpy(case), _numpy(results))


def _module(torch: Any, source: str) -> Any:
    module_name, _, name = source.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise _Refused(f"{module_name} has no {name}: name a torch.nn.Module as MODULE:NAME")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, torch.nn.Module):
        found = found()
    if not isinstance(found, torch.nn.Module):
        raise _Refused(f"{source} is a {type(found).__name__}: name a torch.nn.Module, or a function that returns one")
    return found.eval()


def _export(torch: Any, module: Any, given: dict[str, Any]) -> Any:
    """Export the module for any number of rows if possible, else for those of the sample."""
    if not given:
        raise _Refused(
            "a module does not tell the shapes of its inputs: give --sample FILE.npz, or "
            '--input "NAME=float32[2,3,224,224]"'
        )
    tensors = _ordered(given, list(inspect.signature(module.forward).parameters)[: len(given)])
    if all(tensor.ndim for tensor in tensors) and len({tensor.shape[0] for tensor in tensors}) == 1:
        # The exporter treats a size of 1 as a constant.
        several = tuple(torch.cat([each, each]) if each.shape[0] == 1 else each for each in tensors)
        batch = torch.export.Dim("batch")
        try:
            return torch.export.export(module, several, dynamic_shapes=tuple({0: batch} for _ in several))
        except Exception:  # noqa: BLE001, S110 - a fixed number of rows may still work
            pass
    return torch.export.export(module, tuple(tensors))


def _example_of(torch: Any, program: Any) -> dict[str, Any]:
    """Return the inputs that the program was saved with, or random ones of its shapes."""
    if program.example_inputs is not None:
        arguments, keywords = program.example_inputs
        tensors = [*arguments, *keywords.values()]
        if all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            return {f"{number}": tensor for number, tensor in enumerate(tensors)}
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return {
        name: _random(torch, values[name].dtype, [axis if isinstance(axis, int) else 2 for axis in values[name].shape])
        for name in program.graph_signature.user_inputs
    }


def _generated(torch: Any, inputs: list[str]) -> dict[str, Any]:
    given = {}
    for text in inputs:
        name, _, rest = text.partition("=")
        dtype, _, axes = rest.rstrip("]").partition("[")
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise _Refused(f"--input {text!r} has dtype {dtype!r}, unknown to PyTorch: write NAME=float32[2,3]")
        given[name] = _random(torch, kind, [int(axis) for axis in axes.split(",") if axis.strip()])
    return given


def _random(torch: Any, dtype: Any, shape: list[int]) -> Any:
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0, 2, shape).to(dtype)


def _ordered(given: dict[str, Any], names: list[str]) -> list[Any]:
    """Return the inputs by name if all names are the model's, else in the given order."""
    return [given[name] for name in names] if set(names) == set(given) else list(given.values())


def _numpy(tensors: dict[str, Any]) -> _Arrays:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _outputs_of(torch: Any, outputs: Any) -> dict[str, Any]:
    """Return the outputs by the model's names, else as `output`, or `output_0`, …."""
    if isinstance(outputs, dict):
        return dict(outputs)
    leaves = torch.utils._pytree.tree_leaves(outputs)  # noqa: SLF001 - torch.export flattens with it
    return {"output": leaves[0]} if len(leaves) == 1 else {f"output_{place}": leaf for place, leaf in enumerate(leaves)}


def convert_tensorflow(tf: Any, source: str, out: Path, sample: _Arrays, inputs: list[str]) -> None:  # noqa: ARG001
    """Write the model and its cases, with TensorFlow."""
    if Path(source).is_file():
        import keras  # noqa: PLC0415 - comes with TensorFlow

        folder = out / "saved-model"
        keras.models.load_model(source, compile=False).export(folder, verbose=False)
    else:
        folder = Path(source)
    loaded = tf.saved_model.load(str(folder))
    run = loaded.signatures.get(_SIGNATURE)
    if run is None:
        there = ", ".join(loaded.signatures) or "none"
        raise _Refused(f"the SavedModel has no signature {_SIGNATURE!r}; available: {there}")
    _, specs = run.structured_input_signature
    for number, case in enumerate(_tensorflow_cases(specs, sample)):
        outputs = run(**{name: tf.constant(array) for name, array in case.items()})
        _write_case(out / f"case-{number}.npz", case, {name: tensor.numpy() for name, tensor in outputs.items()})
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--signature_def", _SIGNATURE]
    done = subprocess.run(
        [*command, "--opset", _OPSET, "--output", str(out / "model.onnx")], capture_output=True, text=True, check=False
    )
    if done.returncode or not (out / "model.onnx").exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _Refused(f"tf2onnx: {lines[-1] if lines else 'it ended with no message'}")


def _tensorflow_cases(specs: dict[str, Any], given: _Arrays) -> list[_Arrays]:
    import numpy as np  # noqa: PLC0415 - comes with TensorFlow

    rng = np.random.default_rng(0)
    given = given or {
        name: _random_array(rng, spec.dtype, [axis or 2 for axis in spec.shape]) for name, spec in specs.items()
    }
    if set(given) != set(specs):
        raise _Refused(f"the sample has {', '.join(sorted(given))}: name its arrays {', '.join(sorted(specs))}")
    if not all(spec.shape.rank and spec.shape[0] is None for spec in specs.values()):
        return [given]
    most = {name: np.concatenate([array] * max(_ROWS)) for name, array in given.items()}
    return [given, *({name: array[:rows] for name, array in most.items()} for rows in _ROWS)]


def _random_array(rng: Any, dtype: Any, shape: list[int]) -> Any:
    if dtype.is_floating:
        return rng.standard_normal(shape).astype(dtype.as_numpy_dtype)
    if dtype.is_integer or dtype.is_bool:
        return rng.integers(0, 2, shape).astype(dtype.as_numpy_dtype)
    raise _Refused(f"cannot make random values of {dtype.name}: give --sample FILE.npz")


def _read_sample(path: Path | None) -> _Arrays:
    if path is None:
        return {}
    import numpy as np  # noqa: PLC0415 - comes with either framework

    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _write_case(path: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    import numpy as np  # noqa: PLC0415 - comes with either framework

    arrays = {f"in/{name}": array for name, array in inputs.items()}
    arrays |= {f"out/{name}": array for name, array in outputs.items()}
    np.savez(path, **arrays)


def _say(code: int, message: str) -> int:
    print(" ".join(message.split())[:1000], file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
