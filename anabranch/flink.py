"""Inference inside a PyFlink job: `infer` adds Anabranch's operators to a stream.

stream --> [ enter ] --> [ frame ] --> serve, infer, stages, aggregate --> [ leave ] --> scored
                                                                      --> [ fail ]  --> scored.failures

Elements that Java holds as bytes or texts, as it holds pickles, enter and leave without Python. If they are events in
JSON, tables of fields spare the functions, as in a flow.
"""

import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from pyflink.common import Row, TypeInformation, Types
from pyflink.datastream import DataStream, FlatMapFunction, MapFunction, StreamExecutionEnvironment

from anabranch.flink_job import installation, java
from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.flink_job.flows.resolution import resolve_flow
from anabranch.flink_job.job import environment as anabranch_environment
from anabranch.flink_job.job import flink_options
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.state.operator_ids import SERVE_RESPONSES
from anabranch.flink_job.state.saved_state import STATE_PARAMETER
from anabranch.flink_job.stream_keying import VALUE_TYPE, keys_by_group
from anabranch.flink_job.topology import serve
from anabranch.operators.backends.base import Backend
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.core.flows.flow_spec import FlowSpec, OutputField
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.flows.input_mapping import STRUCT_FORMATS, Mapped
from anabranch.operators.runtime.flink_compat import (
    follows_python,
    java_stream,
    unkeyed,
    use_own_operators,
    use_worker_processes,
)
from anabranch.schemas.errors import AnabranchError, InferenceFailed, MappingFailed, UnknownModel, UnknownVersion
from anabranch.schemas.frames import read_answers
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from anabranch.schemas.tensors import BYTES, NUMPY_DTYPES, Array, datatype_of, fits, raw_from_array, show_axes
from anabranch.schemas.wire.carried import EVENT, Carried, flow_number
from anabranch.schemas.wire.dead_letters import decode_dead_letter

Inputs: TypeAlias = Callable[[Any], Mapping[str, Any]] | Mapping[str, Any]
Outputs: TypeAlias = Callable[[Any, dict[str, Any]], Any] | Mapping[str, Any]

#: By how elements become bytes; elements in state have it, too.
_PICKLES, _BYTES, _TEXTS = "elements", "bytes", "texts"
_TO = "scored"
_ROW_TYPES = (list, tuple)
_READERS: dict[str, Callable[[bytes], Any]] = {_PICKLES: pickle.loads, _BYTES: bytes, _TEXTS: bytes.decode}
_WRITERS: dict[str, Callable[[Any], bytes]] = {
    _PICKLES: lambda element: pickle.dumps(element, protocol=5),
    _BYTES: bytes,
    _TEXTS: str.encode,
}


class FailedElement(NamedTuple):
    """An element without prediction, and the code and text of its error."""

    element: Any
    code: str
    message: str


class ScoredStream(DataStream):
    """A stream of elements with predictions.

    Attributes:
        failures: Stream of `FailedElement`.
    """

    failures: DataStream


class _Functions(NamedTuple):
    """The user's functions, and how their elements become bytes."""

    inputs: Callable[[Any], Mapping[str, Any]]
    outputs: Callable[[Any, dict[str, Any]], Any]
    leaves_as: str


class _ElementFlow(Flow):
    """Calls the user's functions for elements; only this job makes pickles of them."""

    def __init__(self, spec: FlowSpec, model: ModelSpec, functions: _Functions) -> None:
        super().__init__(spec, model)
        self._make_inputs = functions.inputs
        self._load = _READERS[spec.topic]
        self.write = _writer(functions, self._load)
        self._rows = [(each.name, _RowPacker(each, model).pack) for each in model.inputs]

    def read_all(self, events: Sequence[bytes]) -> list[list[Mapped] | AnabranchError]:
        load, make_inputs, rows = self._load, self._make_inputs, self._rows
        # Most models have one input, for which a comprehension costs more than its work.
        name, pack = rows[0] if len(rows) == 1 else ("", None)
        found: list[list[Mapped] | AnabranchError] = []
        for event in events:
            try:
                tensors = make_inputs(load(event))
                found.append([pack(tensors[name])] if pack else [pack_row(tensors[each]) for each, pack_row in rows])
            except AnabranchError as error:
                found.append(error)
            except Exception as error:  # noqa: BLE001 - a function may raise anything
                found.append(MappingFailed(f"inputs raised {type(error).__name__}: {error}"))
        return found

    def format(self, outputs: Mapping[str, Array]) -> list[Any]:
        if len(outputs) == 1:
            [(name, rows)] = outputs.items()
            return [{name: row} for row in rows]
        names = list(outputs)
        return [dict(zip(names, row, strict=True)) for row in zip(*outputs.values(), strict=True)]


def _writer(functions: _Functions, load: Callable[[bytes], Any]) -> Callable[[bytes, Any], bytes]:
    make_element, dump = functions.outputs, _WRITERS[functions.leaves_as]
    is_bytes = functions.leaves_as == _BYTES
    element_type = {_BYTES: bytes | bytearray | memoryview, _TEXTS: str}.get(functions.leaves_as, object)

    def write(event: bytes, outputs: Any) -> bytes:
        try:
            element = make_element(load(event), outputs)
            if is_bytes and type(element) is bytes:
                return element
            if not isinstance(element, element_type):
                raise TypeError(f"it returned {type(element).__name__}, which output_type is not")
            return dump(element)
        except Exception as error:
            raise InferenceFailed(f"outputs raised {type(error).__name__}: {error}") from error

    return write


class _ElementFlows(Flows):
    """The flow of a stream; state may hold elements of another type."""

    def __init__(self, spec: FlowSpec, model: ModelSpec, functions: _Functions) -> None:
        super().__init__([(msgspec.structs.replace(spec, topic=topic), model) for topic in _READERS])
        self._functions = functions

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_functions": self._functions}

    def with_functions(self, load: Any) -> Flows:  # noqa: ARG002 - the user's functions come with the job
        return self

    def of(self, topic: str) -> Flow | None:
        if topic in self._specs and topic not in self._compiled:
            self._compiled[topic] = _ElementFlow(*self._specs[topic], self._functions)
        return self._compiled.get(topic)


class _RowPacker:
    """Makes the row of an element for one input."""

    def __init__(self, spec: TensorSpec, model: ModelSpec) -> None:
        self._spec, self._model = spec, model
        row = spec.shape[1:] if model.batchable else spec.shape
        letter = None if spec.datatype in (BYTES, "BOOL") else STRUCT_FORMATS.get(spec.datatype)
        #: Packs a list of numbers in a fraction of numpy's time; None for other rows.
        self._pack = None
        if letter and len(row) == 1 and row[0] is not None:
            self._length, self._shape = row[0], (row[0],)
            self._pack = struct.Struct(f"<{row[0]}{letter}").pack

    def pack(self, value: Any) -> Mapped:
        """Return the row, or raise MappingFailed."""
        if self._pack is not None and type(value) in _ROW_TYPES and len(value) == self._length:
            try:
                return self._pack(*value), self._shape
            except (struct.error, OverflowError, TypeError):
                pass  # numpy converts more, and names the error.
        return _row_of(self._spec, value, self._model)


def _row_of(spec: TensorSpec, value: Any, model: ModelSpec) -> Mapped:
    """Return the row of an element for one input, or raise MappingFailed."""
    array = value if isinstance(value, np.ndarray) else np.asarray(value, NUMPY_DTYPES.get(spec.datatype, object))
    row = spec.shape[1:] if model.batchable else spec.shape
    if not fits(array.shape, row):
        raise MappingFailed(
            f"inputs returned {spec.name!r} of shape {list(array.shape)}, expected {show_axes(row)}: return one row"
        )
    if datatype_of(array.dtype) != spec.datatype:
        raise MappingFailed(f"inputs returned {spec.name!r} as {array.dtype}, expected {spec.datatype}: convert it")
    return bytes(raw_from_array(array)), array.shape


class _Enter(MapFunction):
    def map(self, value: Any) -> bytes:
        return pickle.dumps(value, protocol=5)


class _Leave(FlatMapFunction):
    def flat_map(self, value: bytes) -> Iterator[Any]:
        for _, element, _ in read_answers(bytes(value)):
            yield pickle.loads(element)  # noqa: S301 - by `_ElementFlow`


class _Fail(MapFunction):
    def map(self, value: Row) -> FailedElement:
        letter = decode_dead_letter(bytes(value[1]))
        element = _READERS[letter.source.topic](letter.original) if letter.original else None
        return FailedElement(element, letter.code, letter.message)


def environment(config: Config | None = None, flink_url: str | None = None) -> StreamExecutionEnvironment:
    """Return an environment with Anabranch's Java.

    Args:
        config: Its `[job]` applies.
        flink_url: REST address of a cluster; None for a MiniCluster in this process.
    """
    config = config or Config()
    installation.activate()
    use_worker_processes()
    use_own_operators()
    # The operators of a user may have no identities.
    options = {**flink_options(config), "pipeline.auto-generate-uids": "true"}
    env = anabranch_environment(config, options, config.job.parallelism, flink_url)
    env.get_config().set_global_job_parameters({STATE_PARAMETER: config.job.state_url})
    return env


def infer(
    stream: DataStream,
    *,
    model: str,
    repository: str | Path,
    inputs: Inputs,
    outputs: Outputs,
    uid: str,
    parallelism: int = 1,
    deadline_ms: int = 0,
    priority: int = 0,
    output_type: TypeInformation | None = None,
    config: Config | None = None,
    backend: Backend | None = None,
) -> ScoredStream:
    """Run a model on each element of a stream, in batches.

    The result has the elements in any order. They have no timestamps, and the stream has no watermarks.

    Args:
        stream: Any stream of elements that can be pickled.
        model: `NAME` or `NAME@VERSION` of the repository: a model, an ensemble, a chain or a model in stages.
        repository: Folder of models, on every TaskManager.
        inputs: Function that returns an array for each input of the model, without batch axis; or, for a stream of
            texts or bytes in JSON, the fields of each input, as in a flow: `{"x": ["amount", "user.age"]}`.
        outputs: Function that returns the resulting element from the element and its outputs by name, without batch
            axis; or the outputs for fields, as in a flow: `{"score": "y[1]"}`. Both are functions, or both are fields.
        uid: Start of the identities of the operators, by which a savepoint finds their state.
        parallelism: Tasks with a session each.
        deadline_ms: Time for each element from its arrival; 0 for none.
        priority: 1 is the most urgent; 0 takes the default.
        output_type: Type of the resulting elements; pickled by default, with fields as the stream's.
        config: Its `[scheduling]`, `[defaults]` and `[exchange]` apply.
        backend: ONNX Runtime by default.

    Raises:
        ConfigError: The model is unknown, the repository unusable, or the environment lacks Anabranch's Java.
    """
    base = config or Config()
    catalog = _only(read_repository(Path(repository), base.defaults), model)
    served = catalog.find(*_name_and_version(model))
    stream = unkeyed(stream)
    element_type = output_type or Types.PICKLED_BYTE_ARRAY()
    flows: Flows
    if isinstance(inputs, Mapping) or isinstance(outputs, Mapping):
        table = _table_of(stream, inputs, outputs, output_type, model=model, deadline_ms=deadline_ms, priority=priority)
        element_type = stream.get_type()
        flows = Flows([(resolve_flow(table, catalog, f"infer {uid!r}"), served)])
    else:
        spec = FlowSpec(
            topic=_PICKLES,
            to=_TO,
            model_name=served.name,
            model_version=served.version,
            outputs=tuple(OutputField((output.name,), output.name) for output in served.outputs),
            deadline_ms=deadline_ms,
            priority=priority,
        )
        leaves_as = _kind_of(element_type) or _PICKLES
        flows = _ElementFlows(spec, served, _Functions(inputs, outputs, leaves_as))
    env = stream.get_execution_environment()
    if env.get_max_parallelism() <= 0:
        env.set_max_parallelism(base.job.max_parallelism)
    settings = base.replace(
        job={"parallelism": parallelism, "max_parallelism": env.get_max_parallelism()},
        exchange={"transport": "messages"},
    )
    groups = keys_by_group(settings.job.max_parallelism)
    entered, topic = _enter(stream, f"{uid}/enter", parallelism)
    carried = Carried(topic, EVENT).encode()
    row_type = Types.ROW([Types.INT(), VALUE_TYPE])
    frames = java.frame_elements(entered, groups, row_type, flow_number(topic), carried, f"{uid}/frame")
    frames.set_parallelism(parallelism)
    runtime = backend or OnnxBackend(settings.job.max_run_memory_mb)
    streams = serve(frames, settings, catalog, runtime, flows, prefix=f"{uid}/", is_stored=False)
    if follows_python(frames):
        # In thread mode, two Python operators in one thread wait for each other's interpreter lock for ever.
        streams.frames[SERVE_RESPONSES].start_new_chain()
    first, *others = streams.frames.values()
    merged = java.frames_of_rows(streams.merged, VALUE_TYPE).name(f"{uid}/merged").set_parallelism(parallelism)
    # One operator leaves, so that the next one may be fused with it.
    scored = _leave(first.union(*others, merged), element_type)
    result = ScoredStream(java_stream(scored.name(f"{uid}/leave").set_parallelism(parallelism)))
    failed = streams.letters.map(_Fail(), output_type=Types.PICKLED_BYTE_ARRAY()).name(f"{uid}/fail")
    # PyFlink may fuse it with the user's operators, and copies of an identity collide; it has no state.
    result.failures = failed.set_parallelism(parallelism).start_new_chain()
    return result


def _table_of(
    stream: DataStream, inputs: Inputs, outputs: Outputs, output_type: TypeInformation | None, **others: Any
) -> FlowTable:
    """Return the flow of a stream of events in JSON; raise ConfigError if it has others."""
    kind = _kind_of(stream.get_type())
    if not isinstance(inputs, Mapping) or not isinstance(outputs, Mapping):
        given, other = ("inputs", "outputs") if isinstance(inputs, Mapping) else ("outputs", "inputs")
        raise ConfigError(f"{given} names fields, but {other} is a function: give both as fields, or both as functions")
    if kind not in (_BYTES, _TEXTS):
        raise ConfigError(
            "inputs and outputs name fields, which elements of Python do not have: give the stream events in JSON as "
            "Types.STRING() or Types.PRIMITIVE_ARRAY(Types.BYTE()), or give functions"
        )
    if output_type is not None and output_type != stream.get_type():
        raise ConfigError("output_type differs from the stream's type, but outputs names fields: leave output_type out")
    fields = {name: list(each) if isinstance(each, tuple) else each for name, each in inputs.items()}
    return FlowTable(source=kind, to=_TO, inputs=fields, outputs=dict(outputs), **others)


def _kind_of(kind: TypeInformation) -> str | None:
    """Return how Java holds elements of a type as bytes or text; None if it does not."""
    if kind == Types.PICKLED_BYTE_ARRAY():
        return _PICKLES
    if kind == VALUE_TYPE:
        return _BYTES
    return _TEXTS if kind == Types.STRING() else None


def _enter(stream: DataStream, name: str, parallelism: int) -> tuple[DataStream, str]:
    """Return the elements as bytes, and how they became bytes."""
    kind = _kind_of(stream.get_type())
    if kind == _TEXTS:
        stream = java.bytes_of_texts(stream, VALUE_TYPE).name(name).set_parallelism(parallelism)
    elif kind is None:
        stream, kind = stream.map(_Enter(), output_type=VALUE_TYPE).name(name).set_parallelism(parallelism), _PICKLES
    return stream, kind


def _leave(answers: DataStream, element_type: TypeInformation) -> DataStream:
    kind = _kind_of(element_type)
    if kind is None:
        return answers.flat_map(_Leave(), output_type=element_type)
    return java.unpack_values(answers, element_type, as_texts=kind == _TEXTS)


def _name_and_version(model: str) -> tuple[str, str]:
    name, _, version = model.partition("@")
    return name, version


def _only(catalog: Catalog, model: str) -> Catalog:
    """Return a catalog of a model, and of the members of an ensemble."""
    try:
        found = catalog.find(*_name_and_version(model))
    except (UnknownModel, UnknownVersion) as error:
        raise ConfigError(error.message) from None
    kept: Iterable[ModelSpec] = [found]
    if found.ensemble is not None:
        kept = [found, *(catalog.find(*member) for member in found.ensemble.members)]
    models: dict[str, dict[str, ModelSpec]] = {}
    for each in kept:
        models.setdefault(each.name, {})[each.version] = each
    return Catalog(models)
