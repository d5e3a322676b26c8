"""Admits the events of flows as requests, beside requests."""

from collections.abc import Sequence

from anabranch.operators.core.admission import PHASE, Admission, AdmittedHead, request_of
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.padded_batch import with_neighbours
from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.flows.input_mapping import Mapped
from anabranch.operators.core.requests import Refused, Request
from anabranch.schemas.errors import AnabranchError, InternalError, RequestTooLarge, UnknownFlow, UnreadableRequest
from anabranch.schemas.limits import CACHED_HEADS
from anabranch.schemas.messages import Encoding
from anabranch.schemas.model import Catalog
from anabranch.schemas.records import NO_DEADLINE_MS, Source
from anabranch.schemas.signatures import Failure, Signature, TensorSignature, encode_signature
from anabranch.schemas.tensors import Buffer
from anabranch.schemas.wire.carried import (
    PARTITIONS,
    ReplyTopics,
    event_id,
    event_topic,
    is_event,
    is_of_one_topic,
    topic_bytes,
)

_Shapes = tuple[tuple[int, ...], ...]


class EventAdmission(Admission):
    """Admission of a job with flows."""

    def __init__(
        self,
        catalog: Catalog,
        max_message_bytes: int,
        default_priority: int,
        defects: Defects,
        reply_topics: ReplyTopics | None = None,
        flows: Flows | None = None,
    ) -> None:
        super().__init__(catalog, max_message_bytes, default_priority, defects, reply_topics)
        self._flows = flows or Flows()
        self._event_heads: dict[tuple[str, _Shapes], AdmittedHead] = {}
        #: Latest deadline of each ordered flow.
        self._deadlines_ms: dict[str, int] = {}

    def admit(self, message: Buffer | None, source: Source, now_ms: float) -> Request | Refused:
        """Admit or refuse an event or a request; never raises."""
        if not is_event(source.carried):
            return super().admit(message, source, now_ms)
        [admitted] = self._admit_events([(message, source)], event_topic(source.carried), now_ms)
        return admitted

    def admit_all(self, records: Sequence[tuple[Buffer | None, Source]], now_ms: float) -> Sequence[Request | Refused]:
        """Admit or refuse each record, in order; never raises."""
        batchwise: dict[bytes, list[int]] = {}
        if self._flows and records:
            if is_of_one_topic([source.carried for _, source in records]):
                return self._admit_events(records, event_topic(records[0][1].carried), now_ms)
            for index, (_, source) in enumerate(records):
                if is_event(source.carried):
                    batchwise.setdefault(topic_bytes(source.carried), []).append(index)
        admit = super().admit
        if not batchwise:
            return [admit(message, source, now_ms) for message, source in records]
        admitted: list[Request | Refused | None] = [None] * len(records)
        for topic, indices in batchwise.items():
            events = self._admit_events([records[index] for index in indices], topic.decode(), now_ms)
            for index, event in zip(indices, events, strict=True):
                admitted[index] = event
        return [admit(*records[index], now_ms) if each is None else each for index, each in enumerate(admitted)]

    def _admit_events(
        self, records: Sequence[tuple[Buffer | None, Source]], topic: str, now_ms: float
    ) -> list[Request | Refused]:
        """Admit events of one topic."""
        flow = self._flows.of(topic)
        admitted: list[Request | Refused] = []
        try:
            if flow is None:
                raise UnknownFlow(f"topic {topic!r} has no flow: add one that reads it, or remove the topic")
            events = [b"" if message is None else bytes(message) for message, _ in records]
            if flow.spec.is_framed:
                carried = [source.carried for _, source in records]
                found = flow.read_records(list(zip(events, carried, strict=True)))
            else:
                found = flow.read_all(events)
            heads, most_bytes = self._event_heads, self._max_message_bytes
            is_simple = not flow.spec.is_ordered
            partition, place = -1, ""
            last_shape: tuple[int, ...] | None = None
            head: AdmittedHead | None = None
            for event, (message, source), mapped in zip(events, records, found, strict=True):
                # Without the calls of `_admit_event`.
                if is_simple and event and type(mapped) is list and len(mapped) == 1 and len(event) <= most_bytes:
                    raw, shape = mapped[0]
                    if shape is not last_shape or head is None:
                        last_shape, head = shape, heads.get((topic, (shape,)))
                    if source.partition != partition:
                        partition = source.partition
                        place = f"{topic}-{partition & PARTITIONS}-"
                    if head is not None and head.timeout_ms is None and not head.model.require_finite:
                        admitted.append(
                            Request(
                                head.signature,
                                len(event),
                                1,
                                head.priority,
                                NO_DEADLINE_MS,
                                -1,
                                now_ms,
                                0.0,
                                False,
                                False,
                                source,
                                f"{place}{source.offset}",
                                Encoding.JSON,
                                False,
                                False,
                                event,
                                (raw,),
                            )
                        )
                        continue
                admitted.append(self._admit_event(flow, message, event, source, mapped, now_ms))
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            if not isinstance(error, AnabranchError):
                self._defects.note(PHASE, error, f"topic {topic!r}")
                error = InternalError(f"{type(error).__name__}: {error}")
            rest = records[len(admitted) :]
            return admitted + [_refuse_event(bytes(message or b""), source, error) for message, source in rest]
        return admitted

    def _admit_event(
        self,
        flow: Flow,
        message: Buffer | None,
        event: bytes,
        source: Source,
        mapped: list[Mapped] | AnabranchError,
        now_ms: float,
    ) -> Request | Refused:
        try:
            if message is None:
                raise UnreadableRequest("the record is a tombstone, expected an event: send it as the value")
            if isinstance(mapped, AnabranchError):
                raise mapped
            if len(event) > self._max_message_bytes:
                raise RequestTooLarge(
                    f"the event has {len(event)} bytes, at most {self._max_message_bytes} are allowed: "
                    "raise kafka.max_message_bytes"
                )
            tensors: tuple[bytes, ...]
            shapes: _Shapes
            if len(mapped) == 1:
                raw, shape = mapped[0]
                tensors, shapes = (raw,), (shape,)
            else:
                tensors, shapes = tuple([raw for raw, _ in mapped]), tuple([shape for _, shape in mapped])
            topic = flow.spec.topic
            head = self._event_heads.get((topic, shapes)) or self._new_event_head(flow, shapes)
            request = request_of(head, event_id(topic, source), Encoding.JSON, event, source, tensors, now_ms)
        except AnabranchError as error:
            return _refuse_event(event, source, error)
        if flow.spec.is_ordered:
            request.holds_order = True
            latest_ms = self._deadlines_ms.get(topic, 0)
            request.deadline_ms = self._deadlines_ms[topic] = max(latest_ms, request.deadline_ms)
        return request

    def _new_event_head(self, flow: Flow, shapes: _Shapes) -> AdmittedHead:
        spec, model = flow.spec, flow.model
        self._catalog.find(model.name, model.version)  # It may be left out.
        if len(self._event_heads) >= CACHED_HEADS:
            self._event_heads.clear()
        inputs = [
            TensorSignature(each.name, each.datatype, shape) for each, shape in zip(model.inputs, shapes, strict=True)
        ]
        signature = Signature(model.name, model.version, tuple(inputs), flow.outputs)
        if model.padding:
            signature = with_neighbours(model.padding, signature)
        head = self._event_heads[spec.topic, shapes] = AdmittedHead(
            model=model,
            signature=encode_signature(signature),
            order=tuple(range(len(inputs))),
            sizes=(None,) * len(inputs),
            shapes=tuple((1, *shape) if model.batchable else shape for shape in shapes),
            rows=1,
            priority=spec.priority or self._default_priority,
            timeout_ms=spec.deadline_ms or None,
            partial_allowed=False,
            explain=False,
        )
        return head


def _refuse_event(event: bytes, source: Source, error: AnabranchError) -> Refused:
    return Refused(
        source,
        event_id(event_topic(source.carried), source),
        Encoding.JSON,
        event,
        Failure(error.code, error.message, PHASE),
    )
