"""ONNX Runtime sessions for the planner."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from anabranch.onnx_runtime import session as onnx_runtime
from anabranch.onnx_runtime.session import SessionError, first_line
from anabranch.partition.errors import InvalidModel, PartitionError
from anabranch.schemas.model import SessionOptions
from anabranch.schemas.tensors import Array


class RuntimeSession:
    """Loaded model."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.outputs: tuple[str, ...] = tuple(declared.name for declared in session.get_outputs())

    def run(self, inputs: Mapping[str, Array], *, failure: type[PartitionError], subject: str) -> dict[str, Array]:
        """Compute all outputs, or raise `failure` about `subject`."""
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base class
            raise failure(f"{subject} does not run: {first_line(error)}") from None

    def end_profiling(self) -> Path:
        """Stop the profiler; return its file."""
        return Path(self._session.end_profiling())

    def types(self) -> dict[str, onnx.TypeProto]:
        """Return the known types of outputs."""
        known = {declared.name: _type_of(declared.type, declared.shape) for declared in self._session.get_outputs()}
        return {name: proto for name, proto in known.items() if proto is not None}


def open_session(
    model: Path | bytes,
    *,
    failure: type[PartitionError],
    subject: str,
    folder: Path | None = None,
    optimize: bool = True,
    threads: int = 0,
    profile_prefix: Path | None = None,
    optimized_path: Path | None = None,
) -> RuntimeSession:
    """Load a model.

    Args:
        model: A file, or its content.
        failure: Error to raise.
        subject: Start of its message.
        folder: Folder of external data.
        optimize: Optimize fully, or not at all.
        threads: 0 for one per core.
        profile_prefix, optimized_path: See `onnx_runtime.session`.
    """
    options = SessionOptions(
        intra_op_threads=threads, inter_op_threads=threads, optimization="all" if optimize else "none"
    )
    try:
        session = onnx_runtime.open_session(
            model, options, external_data_dir=folder, profile_prefix=profile_prefix, optimized_path=optimized_path
        )
    except SessionError as error:
        raise failure(f"{subject} does not load: {error}") from None
    return RuntimeSession(session)


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """Serialize a model that also outputs the given inner tensors."""
    declared = {value.name for value in model.graph.output}
    added = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in declared]
    count = len(model.graph.output)
    model.graph.output.extend(added)
    try:
        return model.SerializeToString()
    finally:
        del model.graph.output[count:]


def runtime_types(model: onnx.ModelProto, folder: Path, tensors: Sequence[str]) -> dict[str, onnx.TypeProto]:
    """Return types that ONNX Runtime knows.

    Raises:
        InvalidModel: ONNX Runtime cannot load the model.
    """
    content = with_outputs(model, tensors)
    session = open_session(content, failure=InvalidModel, subject="the model", folder=folder, optimize=False)
    return {name: proto for name, proto in session.types().items() if name in set(tensors)}


def _type_of(text: str, shape: Sequence[int | str | None]) -> onnx.TypeProto | None:
    """Parse ONNX Runtime's notation of a type: `tensor(float)`, `seq(tensor(int64))`."""
    kind, _, inner = text.removesuffix(")").partition("(")
    if kind == "tensor":
        number = _ELEMENTS.get(inner)
        # No axes may mean an unknown rank.
        return onnx.helper.make_tensor_type_proto(number, shape or None) if number is not None else None
    element = _type_of(inner, []) if kind in {"seq", "optional"} else None
    if element is None:
        return None
    make = onnx.helper.make_sequence_type_proto if kind == "seq" else onnx.helper.make_optional_type_proto
    return make(element)


_ELEMENTS = {name.lower(): number for name, number in onnx.TensorProto.DataType.items()}
