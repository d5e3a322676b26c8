"""ONNX Runtime behind the back-end seam, and what can be read off a model without running it."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from anabranch.operators.backends.base import ModelLoadFailed, zeros
from anabranch.schemas.model import ModelSpec, SessionOptions, TensorSpec
from anabranch.schemas.stage_manifest import DATA_SHA256
from anabranch.schemas.tensors import BYTES, Array

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}


#: What goes wrong is raised, and told to whom it concerns: a sender of bad rows shall not fill our logs.
_FATAL = 4


def _import() -> None:
    with suppress(ImportError):  # which is told where it is imported next
        import_module("onnxruntime")


@cache
def _runtime() -> Any:
    # In thread mode, Python operators that are chained share a thread, and have a Python thread state each in it. When
    # a module of pybind11's is imported, it asks for the thread's first one, and would wait for ever for the lock that
    # the second holds. So the import has a thread to itself.
    importing = Thread(target=_import, name="import onnxruntime")
    importing.start()
    importing.join()
    # Importing ONNX Runtime takes a while and starts threads: only who runs a model pays.
    import onnxruntime  # noqa: PLC0415

    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


class OnnxSession:
    """One `onnxruntime.InferenceSession`; see `anabranch.operators.backends.base.Session`."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Runs one batch; ONNX Runtime lets go of the interpreter meanwhile.

        Raises:
            UnicodeDecodeError: A BYTES element is not UTF-8, as ONNX strings are.
        """
        fed = {name: _text(array) if array.dtype == object else array for name, array in inputs.items()}
        results: list[Array] = self._session.run(outputs, fed)
        return results


@dataclass(frozen=True)
class OnnxBackend:
    """Loads ONNX files; all of them are equal, so that operators share sessions (see `session_pool`)."""

    def load(self, model: ModelSpec) -> OnnxSession:
        """See `anabranch.operators.backends.base.Backend`."""
        path = Path(model.path)
        if sha256_of(path) != model.sha256:
            raise ModelLoadFailed(f"{path} is not the file that the job was started with: restart the job")
        opened = _open(path, model.session)
        _check_data(path, opened)
        session = OnnxSession(opened)
        if model.session.warm_up_rows:
            _warm_up(session, model)
        return session


def _text(array: Array) -> Array:
    text = np.empty(array.size, dtype=object)
    text[:] = [element.decode() for element in array.ravel()]
    return text.reshape(array.shape)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex.

    Raises:
        ModelLoadFailed: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadFailed(f"cannot read the model {path}: {error.strerror}") from None


def read_signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs that an ONNX file declares; axes with a name or without one are None.

    Raises:
        ModelLoadFailed: It is no ONNX model, or has tensors that the protocol cannot carry.
    """
    session = _open(path, SessionOptions(optimization="none"))
    return (
        tuple(_tensor_spec(path, node) for node in session.get_inputs()),
        tuple(_tensor_spec(path, node) for node in session.get_outputs()),
    )


def _tensor_spec(path: Path, node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise ModelLoadFailed(f"{path}: {node.name!r} is {node.type}, which the protocol cannot carry")
    return TensorSpec(node.name, datatype, tuple(axis if isinstance(axis, int) else None for axis in node.shape))


def _open(path: Path, options: SessionOptions) -> Any:
    runtime = _runtime()
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_threads
    settings.inter_op_num_threads = options.inter_op_threads
    settings.graph_optimization_level = getattr(
        runtime.GraphOptimizationLevel,
        {
            "none": "ORT_DISABLE_ALL",
            "basic": "ORT_ENABLE_BASIC",
            "extended": "ORT_ENABLE_EXTENDED",
            "all": "ORT_ENABLE_ALL",
        }[options.optimization],
    )
    settings.log_severity_level = _FATAL
    # Threads that spin while they wait take the core from the other tasks.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    unknown = [name for name in options.providers if name not in runtime.get_available_providers()]
    if unknown:
        raise ModelLoadFailed(
            f"{path}: this ONNX Runtime has no {', '.join(unknown)}; it has "
            f"{', '.join(runtime.get_available_providers())}"
        )
    try:
        return runtime.InferenceSession(str(path), settings, providers=list(options.providers))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for every cause, and none for all
        raise ModelLoadFailed(f"cannot load the model {path}: {str(error).splitlines()[0]}") from None


def _check_data(path: Path, opened: Any) -> None:
    """Refuses external data that is not what the model was written with, where the model tells."""
    expected = opened.get_modelmeta().custom_metadata_map.get(DATA_SHA256)
    data = path.with_name(f"{path.name}.data")
    if expected is not None and sha256_of(data) != expected:
        raise ModelLoadFailed(f"{data} is not the file that {path.name} was written with: cut the model again")


def _warm_up(session: OnnxSession, model: ModelSpec) -> None:
    rows = model.fixed_rows or model.session.warm_up_rows
    try:
        session.run([output.name for output in model.outputs], zeros(model, rows))
    except Exception:  # noqa: BLE001 - zeros may be no valid input for this model; its first request will tell
        return
