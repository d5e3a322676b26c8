"""Writes answers, and a dead letter for each failure."""

from collections.abc import Callable, Mapping, Sequence

from anabranch.operators.core.defects import Defects
from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.merging.row_ranges import BatchOutputs, format_ranges
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.operators.core.requests import Refused, Request
from anabranch.schemas.errors import (
    AnabranchError,
    DeadlineExceeded,
    ModelUnavailable,
    Overloaded,
    ResponseTooLarge,
    UnknownFlow,
)
from anabranch.schemas.latency_breakdown import LatencyBreakdown
from anabranch.schemas.messages import Encoding, ErrorResponse, InferResponse, Parameter
from anabranch.schemas.records import OpeningRecord, Source
from anabranch.schemas.signatures import Failure, Signature, decode_signature
from anabranch.schemas.tensors import Array, Buffer, Tensor
from anabranch.schemas.wire import codec, protobuf_wire
from anabranch.schemas.wire.carried import (
    Addresses,
    address_event,
    event_source,
    event_topic,
    is_event,
    is_of_one_topic,
    topic_bytes,
)
from anabranch.schemas.wire.dead_letters import encode_dead_letter

#: Met by many requests at once.
_NOT_REPEATED = frozenset({DeadlineExceeded.code, ModelUnavailable.code, Overloaded.code})


class ResponseWriter:
    """Writes answers and dead letters; each copy has its own `meter` and `defects`.

    Args:
        max_response_bytes: Size of the largest answer.
        max_original_bytes: Size of the largest request that a letter repeats; by default as answers.
        repeats_all: No topic has the requests.
        flows: Write the events that leave a flow.
    """

    def __init__(
        self,
        requests_topic: str,
        max_response_bytes: int,
        now_ms: Callable[[], float],
        *,
        max_original_bytes: int | None = None,
        repeats_all: bool = False,
        flows: Flows | None = None,
    ) -> None:
        self._requests_topic = requests_topic
        self._max_response_bytes = max_response_bytes
        self._max_original_bytes = max_response_bytes if max_original_bytes is None else max_original_bytes
        self._not_repeated = frozenset() if repeats_all else _NOT_REPEATED
        self._flows = flows or Flows()
        self.now_ms = now_ms
        self.meter = Meter()
        self.defects = Defects(self.meter)

    def answer(
        self,
        request: Request | OpeningRecord,
        outputs: tuple[Tensor, ...],
        *,
        phase: str,
        missing: Sequence[tuple[int, int]] = (),
        missing_members: Sequence[str] = (),
        failure: Failure | None = None,
        shards: int = 1,
        tasks: int = 1,
        task: int | None = None,
        breakdown: LatencyBreakdown | None = None,
    ) -> list[Answer | DeadLetterRecord]:
        """Write the answer to a request, which may lack rows.

        Args:
            request: A request, or the OPENING of a split one.
            phase: Phase of a failure to write.
            missing: Ranges of missing rows.
            missing_members: Members without any output.
            failure: Reason for missing rows.
        """
        if is_event(request.source.carried):
            arrays = {tensor.name: tensor.to_array() for tensor in outputs}
            return self._answer_events([(request, 0)], arrays, phase)
        signature = decode_signature(request.signature)
        parameters: dict[str, Parameter] = {}
        if request.explain:
            parameters |= {"shards": shards, "tasks": tasks}
            if task is not None:
                parameters["task"] = task
            if breakdown is not None:
                parameters |= breakdown.to_parameters(self.now_ms())
                if task is not None:
                    parameters["batch"] = round(breakdown.started_ms * 1000)
        if failure is not None:
            parameters |= _partial_parameters(missing, missing_members, failure)
        response = InferResponse(signature.model_name, signature.model_version, request.id, outputs, parameters)
        try:
            value = codec.encode_response(response, request.encoding)
            if len(value) > self._max_response_bytes:
                raise _too_large(len(value), self._max_response_bytes)
        except AnabranchError as error:
            return self.fail(request, Failure(error.code, error.message, phase))
        answers: list[Answer | DeadLetterRecord] = [Answer(request.id.encode(), value, request.source.carried)]
        if failure is not None:
            answers.append(self._dead_letter(request, _named(request, failure)))
        return answers

    def answer_batch(
        self, requests: Sequence[Request], signature: Signature, outputs: BatchOutputs, *, phase: str, task: int
    ) -> list[Answer | DeadLetterRecord]:
        """Write the answers to all requests of a batch without failed rows.

        Args:
            phase: Phase of a failure to write.
            task: Index of the task that ran the batch.
        """
        if self._flows and is_of_one_topic([request.source.carried for request in requests]):
            return self._answer_events(list(zip(requests, range(len(requests)), strict=True)), outputs.arrays(), phase)
        frames: dict[int, protobuf_wire.ResponseFrame] = {}
        answers: list[Answer | DeadLetterRecord] = []
        events: dict[bytes, list[tuple[Request, int]]] = {}
        has_flows = bool(self._flows)
        start = 0
        for request in requests:
            stop = start + request.rows
            if has_flows and is_event(request.source.carried):
                events.setdefault(topic_bytes(request.source.carried), []).append((request, start))
                start = stop
                continue
            if request.encoding is Encoding.PROTOBUF and not request.explain:
                frame = frames.get(request.rows)
                if frame is None:
                    described = outputs.described(request.rows)
                    frame = protobuf_wire.response_frame(signature.model_name, signature.model_version, described)
                    frames[request.rows] = frame
                request_id = request.id.encode()
                value = frame.fill(request_id, outputs.raw_between(start, stop))
                if len(value) <= self._max_response_bytes:
                    answers.append(Answer(request_id, value, request.source.carried))
                    start = stop
                    continue
            rows = outputs.rows_between(start, stop)
            answers += self.answer(request, rows.outputs, phase=phase, task=task, breakdown=request.breakdown)
            start = stop
        if events:
            arrays = outputs.arrays()
            for of_a_flow in events.values():
                answers += self._answer_events(of_a_flow, arrays, phase)
        return answers

    def _answer_events(
        self, events: Sequence[tuple[Request | OpeningRecord, int]], arrays: Mapping[str, Array], phase: str
    ) -> list[Answer | DeadLetterRecord]:
        """Write the outgoing events of one flow.

        Args:
            events: Each with its row in the arrays.
            arrays: Outputs by name, without batch axis if the model has none.
        """
        flow = self._flow_of(events[0][0])
        answers: list[Answer | DeadLetterRecord] = []
        try:
            if flow is None:
                raise UnknownFlow("the topic of the event has no flow any more: add it again")
            fragments = flow.format(arrays if flow.model.batchable else {k: v[None] for k, v in arrays.items()})
        except AnabranchError as error:
            if len(events) == 1:
                return self.fail(events[0][0], Failure(error.code, error.message, phase))
            for request, row in events:
                answers += self._answer_events(
                    [(request, 0)], {name: array[row : row + 1] for name, array in arrays.items()}, phase
                )
            return answers
        write, to, most_bytes = flow.write, flow.to, self._max_response_bytes
        key_of = None if flow.spec.key is None else flow.key_of
        is_framed = flow.spec.is_framed
        address = Addresses(to).of
        for request, row in events:
            try:
                original, source = request.original, request.source
                event = original if type(original) is bytes else bytes(original)
                if is_framed:
                    event = flow.with_head(event, source.carried)
                value = write(event, fragments[row])
                if len(value) > most_bytes:
                    raise _too_large(len(value), most_bytes)
                if is_framed:
                    answers.append(_outgoing(flow, request, event, value))
                else:
                    if key_of is None:
                        addressed = address(source.carried, source.timestamp_ms)
                    else:
                        addressed = address_event(source.carried, to, source.timestamp_ms, key_of(event))
                    answers.append(Answer(b"", value, addressed))
            except AnabranchError as error:
                answers += self.fail(request, Failure(error.code, error.message, phase))
        return answers

    def _flow_of(self, request: Request | OpeningRecord | Refused) -> Flow | None:
        return self._flows.of(event_topic(request.source.carried))

    def _fail_event(
        self, request: Request | OpeningRecord | Refused, failure: Failure
    ) -> list[Answer | DeadLetterRecord]:
        self.meter.note_error(failure.code)
        flow = self._flow_of(request)
        if flow is not None:
            try:
                event = flow.with_head(bytes(request.original), request.source.carried)
                passed = flow.write_failed(event, failure.code)
                if passed is not None and len(passed) <= self._max_response_bytes:
                    return [_outgoing(flow, request, event, passed)]
            except AnabranchError:
                pass  # It has no head, or no key.
        return [self._write(request.id, request.source, failure, request.original)]

    def refuse(self, refused: Refused) -> list[Answer | DeadLetterRecord]:
        """Write the dead letter of a refused request, and an error if its sender can find it."""
        failure = refused.failure
        if is_event(refused.source.carried):
            return self._fail_event(refused, failure)
        dead_letter = self._write(refused.id, refused.source, failure, refused.original)
        if not refused.id:
            self.meter.note_error(failure.code)
            return [dead_letter]
        return [self._error(refused, failure), dead_letter]

    def fail(self, request: Request | OpeningRecord, failure: Failure) -> list[Answer | DeadLetterRecord]:
        """Write the error and the dead letter of a request."""
        named = _named(request, failure)
        if is_event(request.source.carried):
            return self._fail_event(request, named)
        return [self._error(request, named), self._dead_letter(request, named)]

    def _error(self, request: Request | OpeningRecord | Refused, failure: Failure) -> Answer:
        self.meter.note_error(failure.code)
        error = ErrorResponse(request.id, failure.code, failure.message, failure.model_name, failure.model_version)
        return Answer(request.id.encode(), codec.encode_response(error, request.encoding), request.source.carried)

    def _dead_letter(self, request: Request | OpeningRecord, failure: Failure) -> DeadLetterRecord:
        return self._write(request.id, request.source, failure, request.original)

    def _write(self, request_id: str, source: Source, failure: Failure, original: Buffer) -> DeadLetterRecord:
        repeats = 0 < len(original) <= self._max_original_bytes and failure.code not in self._not_repeated
        topic, place = self._requests_topic, source
        if is_event(source.carried):
            topic, place = event_topic(source.carried), event_source(source)
        return DeadLetterRecord(
            request_id.encode(),
            encode_dead_letter(topic, place, request_id, failure, original if repeats else None),
            source.carried,
        )


def _outgoing(flow: Flow, request: Request | OpeningRecord | Refused, event: bytes, value: bytes) -> Answer:
    source = request.source
    addressed = address_event(source.carried, flow.to, source.timestamp_ms, flow.key_of(event))
    return Answer(b"", *flow.without_head(value, addressed))


def _too_large(found_bytes: int, allowed_bytes: int) -> ResponseTooLarge:
    return ResponseTooLarge(
        f"the answer has {found_bytes} bytes, at most {allowed_bytes} are allowed: "
        "raise kafka.max_message_bytes and the topic's max.message.bytes, or ask for fewer rows or outputs"
    )


def _named(request: Request | OpeningRecord, failure: Failure) -> Failure:
    if failure.model_name:
        return failure
    signature = decode_signature(request.signature)
    return Failure(failure.code, failure.message, failure.stage, signature.model_name, signature.model_version)


def _partial_parameters(
    missing: Sequence[tuple[int, int]], missing_members: Sequence[str], failure: Failure
) -> Mapping[str, Parameter]:
    parameters: dict[str, Parameter] = {"error_code": failure.code, "error_message": failure.message}
    if missing:
        parameters["missing_rows"] = format_ranges(missing)
    if missing_members:
        parameters["missing_members"] = ",".join(missing_members)
    return parameters
