"""Checks requests against the catalog, as far as that needs no session.

The common head of a sender's requests is cached as an `AdmittedHead`. A message that differs from an earlier one only
in id and tensors matches a `_Template` and is not decoded.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np

from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.padded_batch import with_neighbours
from anabranch.operators.core.requests import Refused, Request
from anabranch.schemas.errors import (
    AnabranchError,
    DeadlineExceeded,
    EmptyBatch,
    InternalError,
    InvalidParameter,
    MalformedRequest,
    MissingInput,
    NonFiniteInput,
    ReplyRefused,
    RequestTooLarge,
    UnknownInput,
    UnknownOutput,
    UnreadableRequest,
    WrongDatatype,
    WrongShape,
    WrongSize,
)
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.limits import (
    CACHED_HEADS,
    CACHED_HEADS_OF_A_SIZE,
    MAX_CACHED_HEAD_BYTES,
    MAX_CACHED_TEMPLATE_BYTES,
    MAX_DEADLINE_MS,
    MAX_ID_BYTES,
    MAX_PRIORITY,
    MAX_REQUEST_ROWS,
)
from anabranch.schemas.messages import Encoding, InferRequest, Parameter
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from anabranch.schemas.records import NO_DEADLINE_MS, CarryingSource, Source
from anabranch.schemas.signatures import Failure, Signature, TensorSignature, encode_signature
from anabranch.schemas.tensors import (
    FLOATS,
    Buffer,
    Tensor,
    array_from_raw,
    bytes_offsets,
    raw_size_bytes,
    show_axes,
)
from anabranch.schemas.wire import codec, protobuf_wire
from anabranch.schemas.wire.carried import ReplyTopics, without_address

PHASE = "admit"


@dataclass(frozen=True, slots=True)
class AdmittedHead:
    """A checked head of requests.

    Attributes:
        order: Position in the request of each input of the model.
        sizes: Raw size of each input; None for BYTES.
    """

    model: ModelSpec
    signature: bytes
    order: tuple[int, ...]
    sizes: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    rows: int
    priority: int
    timeout_ms: int | None
    partial_allowed: bool
    explain: bool


class _Template(msgspec.Struct, frozen=True, gc=False):
    """A valid message, with id and tensors left open.

    Attributes:
        fixed: Offset and bytes of each fixed run.
        id_at: Start and stop of the id.
        spans: Start and stop of each input of the model.
        size_bytes: Size of all fixed runs.
    """

    head: AdmittedHead
    fixed: tuple[tuple[int, bytes], ...]
    id_at: tuple[int, int]
    spans: tuple[tuple[int, int], ...]
    size_bytes: int


class Admission:
    """Turns the value of a Kafka record into a request or a refusal."""

    def __init__(
        self,
        catalog: Catalog,
        max_message_bytes: int,
        default_priority: int,
        defects: Defects,
        reply_topics: ReplyTopics | None = None,
    ) -> None:
        self._catalog = catalog
        self._max_message_bytes = max_message_bytes
        self._default_priority = default_priority
        self._defects = defects
        self._reply_topics = reply_topics or ReplyTopics(())
        self._heads: OrderedDict[bytes, AdmittedHead] = OrderedDict()
        #: By size of the message, the latest first.
        self._templates: dict[int, list[_Template]] = {}
        self._template_bytes = 0

    def admit(self, message: Buffer | None, source: Source, now_ms: float) -> Request | Refused:
        """Admit or refuse the request in a Kafka record; never raises.

        Args:
            message: Value of the record; None for a tombstone.
            source: Place and timestamp of the record.
            now_ms: Unix time.
        """
        if message is None:
            return _refuse(
                b"", source, UnreadableRequest("the record is a tombstone, expected a request: send it as the value")
            )
        try:
            if source.carried:
                self._reply_topics.check(source.carried)
            has = message.startswith if isinstance(message, bytes) else _prober(message)
            for template in self._templates.get(len(message), ()):
                for at, part in template.fixed:
                    if not has(part, at):
                        break
                else:
                    start, end = template.id_at
                    request_id = protobuf_wire.decode_id(bytes(message[start:end]))
                    view = memoryview(message)
                    tensors = tuple([view[start:end] for start, end in template.spans])
                    return request_of(template.head, request_id, Encoding.PROTOBUF, message, source, tensors, now_ms)
            message = bytes(message)
            return self._admit(message, source, now_ms)
        except ReplyRefused as error:
            carried = without_address(source.carried)
            source = CarryingSource(source.partition, source.offset, source.timestamp_ms, carried)
            return _refuse(bytes(message), source, error)
        except AnabranchError as error:
            return _refuse(bytes(message), source, error)
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            self._defects.note(PHASE, error, f"partition {source.partition}, offset {source.offset}")
            return _refuse(bytes(message), source, InternalError(f"{type(error).__name__}: {error}"))

    def admit_all(self, records: Sequence[tuple[Buffer | None, Source]], now_ms: float) -> Sequence[Request | Refused]:
        """Admit or refuse each record, in order; never raises."""
        return [self.admit(message, source, now_ms) for message, source in records]

    def _admit(self, message: bytes, source: Source, now_ms: float) -> Request:
        if len(message) > self._max_message_bytes:
            raise RequestTooLarge(
                f"the request has {len(message)} bytes, at most {self._max_message_bytes} are allowed: "
                "send fewer rows at a time, or raise kafka.max_message_bytes"
            )
        try:
            envelope = protobuf_wire.open_envelope(message)
        except UnreadableRequest:
            envelope = None  # It may be JSON.
        if envelope is None or not envelope.raw:
            return self._admit_read(codec.decode_request(message), message, source, now_ms)
        head = self._heads.get(envelope.head)
        if head is None:
            request = codec.decode_request(message)
            if request.encoding is not Encoding.PROTOBUF:
                return self._admit_read(request, message, source, now_ms)
            head = self._check(request)
            self._remember(envelope.head, head)
            request_id = request.id
        else:
            request_id = protobuf_wire.decode_id(message[slice(*envelope.id_at)])
            if len(envelope.raw) != len(head.order):
                raise MalformedRequest(
                    f"the request has {len(envelope.raw)} raw_input_contents, expected {len(head.order)}: "
                    "send one for each input"
                )
        view = memoryview(message)
        tensors = tuple([view[slice(*envelope.raw[position])] for position in head.order])
        _check_tensors(head, tensors)
        _check_size_of(request_id, head, message)
        self._keep_template(message, envelope, head)
        return request_of(head, request_id, Encoding.PROTOBUF, message, source, tensors, now_ms)

    def _admit_read(self, request: InferRequest, message: bytes, source: Source, now_ms: float) -> Request:
        head = self._check(request)
        tensors = tuple([request.inputs[position].data for position in head.order])
        _check_tensors(head, tensors)
        _check_size_of(request.id, head, message)
        return request_of(head, request.id, request.encoding, message, source, tensors, now_ms)

    def _keep_template(self, message: bytes, envelope: protobuf_wire.Envelope, head: AdmittedHead) -> None:
        if None in head.sizes:
            return  # The size of a BYTES tensor does not determine its elements.
        # Everything but the last id and the tensors, such as earlier ids.
        size_bytes = len(message) - sum([stop - start for start, stop in (envelope.id_at, *envelope.raw)])
        if size_bytes > MAX_CACHED_HEAD_BYTES:
            return
        fixed, end = [], 0
        for start, stop in sorted((envelope.id_at, *envelope.raw)):
            if end < start:
                fixed.append((end, message[end:start]))
            end = max(end, stop)
        if end < len(message):
            fixed.append((end, message[end:]))
        spans = tuple([envelope.raw[position] for position in head.order])
        template = _Template(head, tuple(fixed), envelope.id_at, spans, size_bytes)
        if len(self._templates) >= CACHED_HEADS or self._template_bytes + size_bytes > MAX_CACHED_TEMPLATE_BYTES:
            self._templates.clear()
            self._template_bytes = 0
        of_this_size = self._templates.get(len(message), [])
        self._templates[len(message)] = [template, *of_this_size[: CACHED_HEADS_OF_A_SIZE - 1]]
        self._template_bytes += size_bytes - sum([old.size_bytes for old in of_this_size[CACHED_HEADS_OF_A_SIZE - 1 :]])

    def _remember(self, key: bytes, head: AdmittedHead) -> None:
        if len(key) > MAX_CACHED_HEAD_BYTES:
            return
        self._heads[key] = head
        if len(self._heads) > CACHED_HEADS:
            self._heads.popitem(last=False)

    def _check(self, request: InferRequest) -> AdmittedHead:
        model = self._catalog.find(request.model_name, request.model_version)
        order = _match_inputs(model, request.inputs)
        inputs = [request.inputs[position] for position in order]
        rows = _count_rows(model, inputs)
        _check_elements(model, inputs)
        _check_outputs(model, request.outputs)
        signature = Signature(
            model_name=model.name,
            model_version=model.version,
            inputs=tuple(
                TensorSignature(spec.name, spec.datatype, tensor.shape[1:] if model.batchable else tensor.shape)
                for spec, tensor in zip(model.inputs, inputs, strict=True)
            ),
            outputs=request.outputs or tuple(output.name for output in model.outputs),
        )
        if model.padding and rows <= model.batching.shard_rows:
            signature = with_neighbours(model.padding, signature)
        return AdmittedHead(
            model=model,
            signature=encode_signature(signature),
            order=order,
            sizes=tuple(raw_size_bytes(tensor.datatype, tensor.shape) for tensor in inputs),
            shapes=tuple(tensor.shape for tensor in inputs),
            rows=rows,
            priority=_priority(request.parameters) or self._default_priority,
            timeout_ms=_timeout_ms(request.parameters),
            partial_allowed=_flag(request.parameters, "partial"),
            explain=_flag(request.parameters, "explain"),
        )


def request_of(
    head: AdmittedHead,
    request_id: str,
    encoding: Encoding,
    message: Buffer,
    source: Source,
    tensors: tuple[Buffer, ...],
    now_ms: float,
) -> Request:
    """Make a request with a checked head, or raise NonFiniteInput or DeadlineExceeded."""
    if head.model.require_finite:
        for spec, shape, data in zip(head.model.inputs, head.shapes, tensors, strict=True):
            _check_finite(spec, shape, data)
    deadline_ms = NO_DEADLINE_MS
    if head.timeout_ms is not None:
        # The deadline counts from now without a timestamp (-1), or if the sender's clock is ahead.
        start_ms = source.timestamp_ms if 0 <= source.timestamp_ms <= now_ms else round(now_ms)
        deadline_ms = min(start_ms + head.timeout_ms, MAX_DEADLINE_MS)
        if deadline_ms <= now_ms:
            raise DeadlineExceeded(
                f"the deadline passed {now_ms - deadline_ms:.0f} ms before the task read the request: raise its timeout"
            )
    # Positional arguments take half the time of keywords.
    return Request(
        head.signature,
        len(message),
        head.rows,
        head.priority,
        deadline_ms,
        -1,
        now_ms,
        0.0,
        False,
        False,
        source,
        request_id or name_of(source),
        encoding,
        head.partial_allowed,
        head.explain,
        message,
        tensors,
        LatencyBreakdown(source.timestamp_ms if source.timestamp_ms >= 0 else now_ms, now_ms) if head.explain else None,
    )


def name_of(source: Source) -> str:
    """Return the id of a request without one, which its sender knows from Kafka's acknowledgement."""
    return f"{source.partition}-{source.offset}"


def _prober(message: memoryview) -> Callable[[bytes, int], bool]:
    return lambda part, at: message[at : at + len(part)] == part


def _refuse(message: bytes, source: Source, error: AnabranchError) -> Refused:
    is_unreadable = isinstance(error, UnreadableRequest)
    request_id, encoding = ("", codec.encoding_of(message)) if is_unreadable else codec.find_id(message)
    if len(request_id.encode()) > MAX_ID_BYTES:
        request_id = ""
    # Only a header tells the sender of an unreadable request.
    if not request_id and (source.carried or not is_unreadable):
        request_id = name_of(source)
    return Refused(source, request_id, encoding, message, Failure(error.code, error.message, PHASE))


def _check_tensors(head: AdmittedHead, tensors: tuple[Buffer, ...]) -> None:
    for spec, shape, size_bytes, data in zip(head.model.inputs, head.shapes, head.sizes, tensors, strict=True):
        _check_size(spec, shape, size_bytes, data)


def _check_size_of(request_id: str, head: AdmittedHead, message: bytes) -> None:
    if len(request_id) > MAX_ID_BYTES // 4 and len(request_id.encode()) > MAX_ID_BYTES:
        raise MalformedRequest(
            f"the id has {len(request_id.encode())} bytes, at most {MAX_ID_BYTES} are allowed: send a shorter id"
        )
    limit = head.model.session.max_request_bytes
    if limit and len(message) > limit:
        raise RequestTooLarge(
            f"the request has {len(message)} bytes, at most {limit} are allowed for model {head.model.name!r}: "
            "send fewer rows at a time, or raise max_request_bytes under [session] in the model's model.toml"
        )
    if head.rows > len(message):
        # Rows without elements take no bytes.
        raise WrongShape(f"the request has {head.rows} rows in {len(message)} bytes, at most one per byte: send fewer")
    if head.rows > MAX_REQUEST_ROWS:
        raise RequestTooLarge(
            f"the request has {head.rows} rows, at most {MAX_REQUEST_ROWS} are allowed: send fewer rows at a time"
        )


def _check_elements(model: ModelSpec, inputs: list[Tensor]) -> None:
    limit = model.session.max_request_elements
    elements = sum(prod(tensor.shape) for tensor in inputs) if limit else 0
    if elements > limit:
        raise RequestTooLarge(
            f"the request has {elements} elements, at most {limit} are allowed for model {model.name!r}: "
            "send smaller inputs, or raise max_request_elements under [session] in the model's model.toml"
        )


def _match_inputs(model: ModelSpec, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    positions: dict[str, int] = {}
    known = {spec.name for spec in model.inputs}
    for position, tensor in enumerate(inputs):
        # The name of the only input may be left out.
        name = tensor.name or (model.inputs[0].name if len(model.inputs) == 1 else "")
        if name not in known:
            raise UnknownInput(f"unknown input {name!r} of model {model.name!r}; available: {_names(known)}")
        if name in positions:
            raise UnknownInput(f"input {name!r} is given twice, expected once: remove one of them")
        positions[name] = position
    missing = [spec.name for spec in model.inputs if spec.name not in positions]
    if missing:
        raise MissingInput(
            f"model {model.name!r} lacks inputs {_names(missing)}, found {_names(positions)}: send all of its inputs"
        )
    return tuple(positions[spec.name] for spec in model.inputs)


def _check_outputs(model: ModelSpec, wanted: tuple[str, ...]) -> None:
    known = {spec.name for spec in model.outputs}
    for name in wanted:
        if name not in known:
            raise UnknownOutput(f"unknown output {name!r} of model {model.name!r}; available: {_names(known)}")
    if len(set(wanted)) != len(wanted):
        raise UnknownOutput(
            f"{len(wanted)} outputs are requested, {len(set(wanted))} of them different: name each once"
        )


def _count_rows(model: ModelSpec, inputs: list[Tensor]) -> int:
    for spec, tensor in zip(model.inputs, inputs, strict=True):
        if tensor.datatype != spec.datatype:
            raise WrongDatatype(
                f"input {spec.name!r} has datatype {tensor.datatype!r}, expected {spec.datatype}: convert the tensor"
            )
        _check_axes(model, spec, tensor.shape)
    if not model.batchable:
        return 1
    rows = inputs[0].shape[0]
    if any(tensor.shape[0] != rows for tensor in inputs):
        found = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
        raise WrongShape(f"the inputs have different numbers of rows, found {found}: send the same number in each")
    if rows == 0:
        raise EmptyBatch("the request has 0 rows, expected at least 1: send one or more")
    if model.fixed_rows and rows % model.fixed_rows:
        raise WrongShape(
            f"the request has {rows} rows, expected a multiple of {model.fixed_rows}: "
            f"model {model.name!r} has a fixed batch size, so add or remove rows"
        )
    return rows


def _check_axes(model: ModelSpec, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    if spec.any_rank:
        return
    if len(shape) != len(spec.shape):
        raise _wrong_shape(spec, shape)
    first = 1 if model.batchable else 0
    for axis, fixed in list(zip(shape, spec.shape, strict=True))[first:]:
        if fixed is not None and axis != fixed:
            raise _wrong_shape(spec, shape)


def _wrong_shape(spec: TensorSpec, shape: tuple[int, ...]) -> WrongShape:
    return WrongShape(
        f"input {spec.name!r} has shape {list(shape)}, expected {show_axes(spec.shape)}: "
        "send the shape that the model takes"
    )


def _check_size(spec: TensorSpec, shape: tuple[int, ...], size_bytes: int | None, data: Buffer) -> None:
    if size_bytes is None:
        count = 1
        for axis in shape:
            count *= axis
        try:
            bytes_offsets(data, count)
        except WrongSize as error:
            raise WrongSize(f"input {spec.name!r}: {error.message}") from None
    elif len(data) != size_bytes:
        raise WrongSize(
            f"input {spec.name!r} has {len(data)} bytes, expected {size_bytes} for {spec.datatype} {list(shape)}: "
            "send as many elements as the shape says"
        )


def _check_finite(spec: TensorSpec, shape: tuple[int, ...], data: Buffer) -> None:
    if spec.datatype in FLOATS and not np.isfinite(array_from_raw(spec.datatype, shape, data)).all():
        raise NonFiniteInput(
            f"input {spec.name!r} contains NaN or infinity, expected finite numbers: "
            "remove them, or set require_finite = false in the model's model.toml"
        )


def _priority(parameters: Mapping[str, Parameter]) -> int:
    priority = parameters.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidParameter(
            f"parameter priority is {priority!r}, expected an integer from 0 to {MAX_PRIORITY}: "
            "send 1 for the most urgent, or 0 for the default"
        )
    return priority


def _timeout_ms(parameters: Mapping[str, Parameter]) -> int | None:
    timeout_us = parameters.get("timeout")
    if timeout_us is None or timeout_us == 0:
        return None
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
        raise InvalidParameter(
            f"parameter timeout is {timeout_us!r}, expected a positive integer: send microseconds, or leave it out"
        )
    return -(-timeout_us // 1000)


def _flag(parameters: Mapping[str, Parameter], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidParameter(f"parameter {name} is {value!r}, expected a boolean: send true or false")
    return value


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
