"""Inference inside a PyFlink job: `infer` adds Anabranch's operators to a stream.

stream --> [ enter ] --> [ frame ] --> serve, infer, stages, aggregate --> [ leave ] --> scored
                                                                      --> [ fail ]  --> scored.failures
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pyflink.common import Row, TypeInformation, Types
from pyflink.datastream import DataStream, FlatMapFunction, MapFunction, StreamExecutionEnvironment

from anabranch.flink_job import installation, java
from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ConfigError
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
from anabranch.operators.core.flows.input_mapping import Mapped
from anabranch.operators.runtime.flink_compat import (
    java_stream,
    unkeyed,
    use_own_operators,
    use_worker_processes,
)
from anabranch.schemas.errors import AnabranchError, InferenceFailed, MappingFailed, UnknownModel, UnknownVersion
from anabranch.schemas.frames import read_answers
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from anabranch.schemas.tensors import NUMPY_DTYPES, Array, datatype_of, fits, raw_from_array, show_axes
from anabranch.schemas.wire.carried import EVENT, Carried, flow_number
from anabranch.schemas.wire.dead_letters import decode_dead_letter

Inputs: TypeAlias = Callable[[Any], Mapping[str, Any]]
Outputs: TypeAlias = Callable[[Any, dict[str, Any]], Any]

_TOPIC = "elements"


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


class _ElementFlow(Flow):
    """Calls the user's functions for elements in pickles, which only this job makes."""

    def __init__(self, spec: FlowSpec, model: ModelSpec, inputs: Inputs, outputs: Outputs) -> None:
        super().__init__(spec, model)
        self._make_inputs = inputs
        self._make_element = outputs

    def read(self, event: bytes) -> list[Mapped]:
        element = pickle.loads(event)  # noqa: S301 - by `_Enter`
        try:
            tensors = self._make_inputs(element)
            return [_row_of(spec, tensors[spec.name], self.model) for spec in self.model.inputs]
        except AnabranchError:
            raise
        except Exception as error:
            raise MappingFailed(f"inputs raised {type(error).__name__}: {error}") from error

    def format(self, outputs: Mapping[str, Array]) -> list[Any]:
        rows = len(next(iter(outputs.values())))
        return [{name: array[row] for name, array in outputs.items()} for row in range(rows)]

    def write(self, event: bytes, fragments: Any) -> bytes:
        element = pickle.loads(event)  # noqa: S301 - by `_Enter`
        try:
            return pickle.dumps(self._make_element(element, fragments), protocol=5)
        except Exception as error:
            raise InferenceFailed(f"outputs raised {type(error).__name__}: {error}") from error


class _ElementFlows(Flows):
    """The only flow of a stream."""

    def __init__(self, spec: FlowSpec, model: ModelSpec, inputs: Inputs, outputs: Outputs) -> None:
        super().__init__([(spec, model)])
        self._functions = inputs, outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_functions": self._functions}

    def with_functions(self, load: Any) -> Flows:  # noqa: ARG002 - the user's functions come with the job
        return self

    def of(self, topic: str) -> Flow | None:
        if topic in self._specs and topic not in self._compiled:
            self._compiled[topic] = _ElementFlow(*self._specs[topic], *self._functions)
        return self._compiled.get(topic)


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


class _LeaveMerged(MapFunction):
    def map(self, value: Row) -> Any:
        return pickle.loads(bytes(value[1]))  # noqa: S301 - by `_ElementFlow`


class _Fail(MapFunction):
    def map(self, value: Row) -> FailedElement:
        letter = decode_dead_letter(bytes(value[1]))
        element = pickle.loads(letter.original) if letter.original else None  # noqa: S301 - by `_Enter`
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
        inputs: Returns an array for each input of the model, without batch axis.
        outputs: Returns the resulting element from the element and its outputs by name, without batch axis.
        uid: Start of the identities of the operators, by which a savepoint finds their state.
        parallelism: Tasks with a session each.
        deadline_ms: Time for each element from its arrival; 0 for none.
        priority: 1 is the most urgent; 0 takes the default.
        output_type: Type of the resulting elements; pickled by default.
        config: Its `[scheduling]`, `[defaults]` and `[exchange]` apply.
        backend: ONNX Runtime by default.

    Raises:
        ConfigError: The model is unknown, the repository unusable, or the environment lacks Anabranch's Java.
    """
    base = config or Config()
    catalog = _only(read_repository(Path(repository), base.defaults), model)
    served = catalog.find(*_name_and_version(model))
    spec = FlowSpec(
        topic=_TOPIC,
        to="scored",
        model_name=served.name,
        model_version=served.version,
        outputs=tuple(OutputField((output.name,), output.name) for output in served.outputs),
        deadline_ms=deadline_ms,
        priority=priority,
    )
    env = stream.get_execution_environment()
    if env.get_max_parallelism() <= 0:
        env.set_max_parallelism(base.job.max_parallelism)
    settings = base.replace(
        job={"parallelism": parallelism, "max_parallelism": env.get_max_parallelism()},
        exchange={"transport": "messages"},
    )
    groups = keys_by_group(settings.job.max_parallelism)
    entered = unkeyed(stream).map(_Enter(), output_type=VALUE_TYPE).name(f"{uid}/enter").set_parallelism(parallelism)
    carried = Carried(_TOPIC, EVENT).encode()
    row_type = Types.ROW([Types.INT(), VALUE_TYPE])
    frames = java.frame_elements(entered, groups, row_type, flow_number(_TOPIC), carried, f"{uid}/frame")
    frames.set_parallelism(parallelism)
    flows = _ElementFlows(spec, served, inputs, outputs)
    runtime = backend or OnnxBackend(settings.job.max_run_memory_mb)
    streams = serve(frames, settings, catalog, runtime, flows, prefix=f"{uid}/", is_stored=False)
    # In thread mode, two Python operators in one thread wait for each other's interpreter lock for ever.
    streams.frames[SERVE_RESPONSES].start_new_chain()
    element_type = output_type or Types.PICKLED_BYTE_ARRAY()
    left = [
        _named(answers.flat_map(_Leave(), output_type=element_type), f"{uid}/leave-{name}", parallelism)
        for name, answers in streams.frames.items()
    ]
    merged = _named(streams.merged.map(_LeaveMerged(), output_type=element_type), f"{uid}/leave-merged", parallelism)
    scored = left[0].union(*left[1:], merged)
    result = ScoredStream(java_stream(scored))
    result.failures = _named(
        streams.letters.map(_Fail(), output_type=Types.PICKLED_BYTE_ARRAY()), f"{uid}/fail", parallelism
    )
    return result


def _named(stream: DataStream, name: str, parallelism: int) -> DataStream:
    # PyFlink may fuse it with the user's operators, and copies of an identity collide; it has no state.
    return stream.name(name).set_parallelism(parallelism).start_new_chain()


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
