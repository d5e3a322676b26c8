"""ONNX Runtime, as far as cutting a model needs it; loaded when it is first asked for."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from anabranch.partition.errors import InvalidModel, PartitionError
from anabranch.schemas.tensors import Array

#: What goes wrong is raised, and told in one line.
_FATAL = 4


@cache
def _runtime() -> Any:
    # Importing ONNX Runtime takes a while and starts threads.
    import onnxruntime  # noqa: PLC0415

    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


class RuntimeSession:
    """A model that can run."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.outputs: tuple[str, ...] = tuple(node.name for node in session.get_outputs())

    def run(self, inputs: Mapping[str, Array], *, failure: type[PartitionError], who: str) -> dict[str, Array]:
        """All outputs for one batch.

        Raises:
            PartitionError: It failed, as the class `failure` with a message that begins with `who`.
        """
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for every cause, and none for all
            raise failure(f"{who} does not run: {first_line(error)}") from None

    def types(self) -> dict[str, onnx.TypeProto]:
        """The types of its outputs; those that only ONNX Runtime knows of are left out."""
        told = {node.name: _type_of(node.type, node.shape) for node in self._session.get_outputs()}
        return {name: proto for name, proto in told.items() if proto is not None}


def open_session(
    model: Path | bytes,
    *,
    failure: type[PartitionError],
    who: str,
    folder: Path | None = None,
    optimize: bool = True,
    threads: int = 0,
) -> RuntimeSession:
    """Loads a model.

    Args:
        model: A file, or its content.
        failure: What to raise where it does not load.
        who: With what the message begins.
        folder: Where external data lies, if `model` is content.
        optimize: Whether to optimize as far as ONNX Runtime can, or not at all.
        threads: That run it; 0 for one on each core.
    """
    runtime = _runtime()
    levels = runtime.GraphOptimizationLevel
    options = runtime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        source = model if isinstance(model, bytes) else str(model)
        return RuntimeSession(runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"]))
    except Exception as error:  # noqa: BLE001 - as above
        raise failure(f"{who} does not load: {first_line(error)}") from None


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """A model that gives some tensors of its midst too."""
    there = {value.name for value in model.graph.output}
    added = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in there]
    count = len(model.graph.output)
    model.graph.output.extend(added)
    try:
        return model.SerializeToString()
    finally:
        del model.graph.output[count:]


def runtime_types(model: onnx.ModelProto, folder: Path, tensors: Sequence[str]) -> dict[str, onnx.TypeProto]:
    """The types of tensors that only ONNX Runtime can tell; of those whose operators it does not know, none.

    Raises:
        InvalidModel: ONNX Runtime cannot load the model at all.
    """
    content = with_outputs(model, tensors)
    session = open_session(content, failure=InvalidModel, who="the model", folder=folder, optimize=False)
    return {name: proto for name, proto in session.types().items() if name in set(tensors)}


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _type_of(text: str, shape: Sequence[int | str | None]) -> onnx.TypeProto | None:
    """ONNX's type of ONNX Runtime's words for it: `tensor(float)`, `seq(tensor(int64))`."""
    kind, _, inner = text.removesuffix(")").partition("(")
    if kind == "tensor":
        number = _ELEMENTS.get(inner)
        # No axes may stand for a scalar, or for any number of them.
        return onnx.helper.make_tensor_type_proto(number, shape or None) if number is not None else None
    element = _type_of(inner, []) if kind in {"seq", "optional"} else None
    if element is None:
        return None
    make = onnx.helper.make_sequence_type_proto if kind == "seq" else onnx.helper.make_optional_type_proto
    return make(element)


_ELEMENTS = {name.lower(): number for name, number in onnx.TensorProto.DataType.items()}
