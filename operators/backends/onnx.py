"""Models of ONNX Runtime, and their signatures."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.onnx_runtime.run_memory import half_of_memory, lacks_memory, limit_run_memory, set_shrinking
from anabranch.onnx_runtime.run_watchdog import WATCHDOG
from anabranch.onnx_runtime.session import SessionError, load_runtime, open_session
from anabranch.operators.backends.base import ModelLoadFailed, zeros
from anabranch.schemas.errors import OutOfMemory
from anabranch.schemas.limits import MIB
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


class OnnxSession:
    """One `onnxruntime.InferenceSession`; see `anabranch.operators.backends.base.Session`."""

    def __init__(self, session: Any, max_run_ms: int = 0, memory_bytes: int = 0) -> None:
        self._session = session
        self._limited = WATCHDOG.limited(max_run_ms) if max_run_ms else None
        self._memory_bytes = memory_bytes

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Run one batch; ONNX Runtime releases the interpreter lock meanwhile.

        Raises:
            UnicodeDecodeError: A BYTES element is not UTF-8, as ONNX strings are.
            RunTooLong: It was stopped at the model's `max_run_ms`.
            OutOfMemory: It needs more memory than the runs of a process may take.
        """
        fed = {name: _text(array) if array.dtype == object else array for name, array in inputs.items()}
        try:
            return self._run(outputs, fed)
        except Exception as error:
            if not lacks_memory(error):
                raise
        # Earlier runs of other sizes may have left the arena in pieces.
        try:
            return self._run(outputs, fed, shrinks=True)
        except Exception as error:
            if not lacks_memory(error):
                raise
        try:
            return self._run(outputs, fed)
        except Exception as error:
            if not lacks_memory(error):
                raise
            limit = f"{self._memory_bytes // MIB} MiB" if self._memory_bytes else "memory"
            raise OutOfMemory(
                f"the run needs more than the {limit} that the runs of a process may take: "
                "send smaller inputs, or raise job.max_run_memory_mb"
            ) from None

    def _run(self, outputs: Sequence[str], fed: Mapping[str, Array], *, shrinks: bool = False) -> list[Array]:
        results: list[Array]
        if shrinks:
            options = load_runtime().RunOptions()
            set_shrinking(options)
            results = self._session.run(outputs, fed, options)
        elif self._limited is None:
            results = self._session.run(outputs, fed)
        else:
            results = self._limited.call(lambda options: self._session.run(outputs, fed, options))
        return results


@dataclass(frozen=True)
class OnnxBackend:
    """Loader of ONNX files; equal instances share sessions.

    Attributes:
        max_run_memory_mb: See `anabranch.flink_job.config.JobConfig`.
    """

    max_run_memory_mb: int = 0

    def load(self, model: ModelSpec) -> OnnxSession:
        """See `anabranch.operators.backends.base.Backend`."""
        path = Path(model.path)
        if sha256_of(path) != model.sha256:
            raise ModelLoadFailed(f"{path} is not the file that the job was started with: restart the job")
        memory_bytes = limit_run_memory(load_runtime(), self.max_run_memory_mb * MIB or half_of_memory())
        opened = _open(path, model.session, shares_arena=True)
        _check_external_data(path, opened)
        session = OnnxSession(opened, model.session.max_run_ms, memory_bytes)
        if model.session.warm_up_rows:
            _warm_up(session, model)
        return session


def _text(array: Array) -> Array:
    text = np.empty(array.size, dtype=object)
    text[:] = [element.decode() for element in array.ravel()]
    return text.reshape(array.shape)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    Raises:
        ModelLoadFailed: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadFailed(f"cannot read the model {path}: {error.strerror}") from None


def read_signature(
    path: Path, custom_ops: tuple[str, ...] = ()
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read the inputs and outputs that an ONNX file declares; a symbolic or unnamed axis is None.

    Raises:
        ModelLoadFailed: The file is not an ONNX model, or has tensors that the protocol cannot carry.
    """
    session = _open(path, SessionOptions(optimization="none", custom_ops=custom_ops))
    return (
        tuple(_tensor_spec(path, declared) for declared in session.get_inputs()),
        tuple(_tensor_spec(path, declared) for declared in session.get_outputs()),
    )


def _tensor_spec(path: Path, declared: Any) -> TensorSpec:
    datatype = _DATATYPES.get(declared.type)
    if datatype is None:
        raise ModelLoadFailed(
            f"{path}: {declared.name!r} is {declared.type}, which the protocol cannot carry{_advice(declared.type)}"
        )
    shape = tuple(axis if isinstance(axis, int) else None for axis in declared.shape)
    return TensorSpec(declared.name, datatype, shape)


def _advice(declared_type: str) -> str:
    if "map(" in declared_type:
        return ": convert the model with the option zipmap=False of skl2onnx, for one tensor of all classes"
    return ": export tensors instead" if declared_type.startswith(("seq(", "optional(")) else ""


def _open(path: Path, options: SessionOptions, *, shares_arena: bool = False) -> Any:
    try:
        return open_session(path, options, shares_arena=shares_arena)
    except SessionError as error:
        raise ModelLoadFailed(f"cannot load the model {path}: {error}") from None


def _check_external_data(path: Path, opened: Any) -> None:
    """Compare external data with the SHA-256 in the model's metadata, if the model has one."""
    expected = opened.get_modelmeta().custom_metadata_map.get(DATA_SHA256)
    data = path.with_name(f"{path.name}.data")
    if expected is not None and sha256_of(data) != expected:
        raise ModelLoadFailed(f"{data} is not the file that {path.name} was written with: cut the model again")


def _warm_up(session: OnnxSession, model: ModelSpec) -> None:
    rows = model.fixed_rows or model.session.warm_up_rows
    try:
        session.run([output.name for output in model.outputs], zeros(model, rows))
    except Exception:  # noqa: BLE001 - some models reject zeros; their first request shows whether they run
        return
