"""EventAdmission: events become requests, beside requests."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.flows.event_admission import EventAdmission
from anabranch.operators.core.flows.flow_spec import FlowSpec
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.flows.formats.framing import HEADER
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, Offload
from anabranch.operators.core.requests import Refused, Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.schemas.frames import read_waiting, write_requests, write_waiting
from anabranch.schemas.model import Catalog, FunctionSpec
from anabranch.schemas.records import CarryingSource
from anabranch.schemas.signatures import Failure, decode_signature
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire.carried import EVENT as EVENT_MARK
from anabranch.schemas.wire.carried import PARTITION_BITS, Carried, decode_carried, flow_number
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.core import test_avro_format as avro
from tests.core.malformed_events import MALFORMED
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, SOURCE, catalog, now_ms, request, session_of
from tests.core.test_flow import EVENT, MODEL, SPEC


def source(topic: str = "payments", offset: int = 3, timestamp_ms: int = int(NOW_MS)) -> CarryingSource:
    carried = Carried(topic, EVENT_MARK, b"k", (("h", b"v"),)).encode()
    return CarryingSource(flow_number(topic) << PARTITION_BITS | 5, offset, timestamp_ms, carried)


def admission(
    *specs: FlowSpec, functions: Any = None, max_bytes: int = MAX_MESSAGE_BYTES, **served: Any
) -> EventAdmission:
    models = catalog(**served)
    flows = Flows([(spec, models.find(spec.model_name, spec.model_version)) for spec in specs or (SPEC,)])
    return EventAdmission(models, max_bytes, 5, Defects(Meter()), flows=flows.with_functions(functions))


def admitted(event: bytes | None, of: EventAdmission | None = None, **place: Any) -> Request:
    request = (of or admission()).admit(event, source(**place), NOW_MS)
    assert isinstance(request, Request), request
    return request


def refused(event: bytes | None, of: EventAdmission | None = None, **place: Any) -> Refused:
    request = (of or admission()).admit(event, source(**place), NOW_MS)
    assert isinstance(request, Refused), request
    return request


def test_event_becomes_a_request_of_one_row() -> None:
    event = admitted(EVENT)
    assert (event.id, event.rows, event.priority, event.deadline_ms) == ("payments-5-3", 1, 5, 0)
    assert event.original == EVENT
    assert event.tensors == (np.array([1.5, 41], "<f4").tobytes(), b"\0\0\0\0")
    signature = decode_signature(event.signature)
    assert (signature.model_name, signature.model_version) == ("rows", "10")
    assert [(each.name, each.datatype, each.shape) for each in signature.inputs] == [
        ("x", "FP32", (2,)),
        ("t", "BYTES", ()),
    ]
    assert signature.outputs == ("y", "label")


def test_event_shares_batches_with_equal_requests() -> None:
    of = admission()
    by_request = of.admit(request("rows", (1.0,), version="10"), SOURCE, NOW_MS)
    assert isinstance(by_request, Request)
    assert by_request.signature == admitted(EVENT, of).signature


def test_event_deadline_counts_from_its_timestamp() -> None:
    of = admission(replace(SPEC, deadline_ms=200, priority=2))
    event = admitted(EVENT, of, timestamp_ms=int(NOW_MS) - 150)
    assert (event.deadline_ms, event.priority) == (int(NOW_MS) + 50, 2)
    assert refused(EVENT, of, timestamp_ms=int(NOW_MS) - 200).failure.code == "deadline_exceeded"


def test_event_of_an_ordered_flow_stays_behind_earlier_ones() -> None:
    of = admission(replace(SPEC, deadline_ms=200, is_ordered=True))
    first = admitted(EVENT, of)
    earlier = admitted(EVENT, of, timestamp_ms=int(NOW_MS) - 100)
    assert first.holds_order
    assert earlier.deadline_ms == first.deadline_ms
    assert not admitted(EVENT).holds_order


@pytest.mark.parametrize("name", MALFORMED)
def test_event_malformed_is_refused_with_its_place(name: str) -> None:
    event = refused(MALFORMED[name])
    assert event.failure.code in ("unreadable", "invalid_field", "missing_field")
    assert (event.id, event.original) == ("payments-5-3", MALFORMED[name])


def test_event_with_other_faults_is_refused() -> None:
    assert refused(None).failure.code == "unreadable"
    assert refused(EVENT, admission(max_bytes=10)).failure.code == "request_too_large"
    assert refused(EVENT, topic="gone").failure.code == "unknown_flow"
    left_out = EventAdmission(
        catalog(without=["rows"]), MAX_MESSAGE_BYTES, 5, Defects(Meter()), flows=Flows([(SPEC, MODEL)])
    )
    assert refused(EVENT, left_out).failure.code == "unknown_model"
    infinite = b'{"amount": null, "user": {"age": 1}}'
    fields = (replace(SPEC.inputs[0].fields[0], default=float("nan")), SPEC.inputs[0].fields[1])
    spec = replace(SPEC, inputs=(replace(SPEC.inputs[0], fields=fields), SPEC.inputs[1]))
    assert refused(infinite, admission(spec, require_finite=True)).failure.code == "non_finite_input"
    assert admitted(infinite, admission(spec)).rows == 1


def test_frame_of_events_and_requests_keeps_its_order() -> None:
    clicks = replace(SPEC, topic="clicks")
    records = [
        (EVENT, source(offset=0)),
        (request(request_id="r"), SOURCE),
        (EVENT, source("clicks", offset=0)),
        (b"{", source(offset=1)),
        (b"\xff\xff", SOURCE),
        (EVENT, source("gone", offset=2)),
    ]
    found = list(admission(SPEC, clicks).admit_all(records, NOW_MS))
    assert [each.id for each in found][:4] == ["payments-5-0", "r", "clicks-5-0", "payments-5-1"]
    assert [type(each).__name__ for each in found] == ["Request", "Request", "Request", "Refused", "Refused", "Refused"]
    requests = [(request(request_id=name), SOURCE) for name in "abc"]
    assert [each.id for each in admission(SPEC).admit_all(requests, NOW_MS)] == ["a", "b", "c"]


def test_event_with_schema_in_a_header_leaves_with_one() -> None:
    event, model = bytes.fromhex(avro.GOLDEN[0]["event"]), avro.model()
    spec, registry = avro.spec("amount", on_error="pass"), avro.registry_of(avro.GOLDEN[0])
    flows = Flows([(spec, model)], registry=registry)
    writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms, flows=flows)
    of = EventAdmission(Catalog({"fraud": {"1": model}}), MAX_MESSAGE_BYTES, 5, writer.defects, flows=flows)

    def named(head: bytes) -> CarryingSource:
        carried = Carried("payments", EVENT_MARK, b"k", (("h", b"v"), (HEADER, head))).encode()
        return CarryingSource(flow_number("payments") << PARTITION_BITS, 3, int(NOW_MS), carried)

    [taken, bad] = of.admit_all([(event[5:], named(event[:5])), (event[5:], named(event[:5] + b"x"))], NOW_MS)
    assert isinstance(taken, Request)
    assert isinstance(bad, Refused)
    assert bad.failure.code == "unreadable"
    assert taken.original == event[5:]
    scores = tuple(Tensor.from_array(name, array) for name, array in avro.SCORES.items())
    failed = Failure("inference_failed", "planted", "infer")
    for outputs, at in ((writer.answer(taken, scores, phase="infer"), 2), (writer.fail(taken, failed), 2)):
        [answer] = outputs
        assert isinstance(answer, Answer)
        headers = decode_carried(answer.carried).headers
        assert headers == (("h", b"v"), (HEADER, b"\0\0\0\0%c" % at))
        found = avro.decoded(registry.schemas[at - 1].text, answer.value)
        assert found["id"] == "a"
    [letter] = writer.refuse(bad)
    assert decode_dead_letter(letter.value).original == event[5:]


def test_frame_of_events_calls_a_function_once() -> None:
    calls = []

    def of(events: list[dict[str, Any]]) -> dict[str, Any]:
        calls.append(len(events))
        x = np.array([[event["amount"], 0] for event in events], np.float32)
        return {"x": x, "t": np.array(["t"] * len(events), object)}

    spec = replace(SPEC, inputs=(), function=FunctionSpec("f.py", "", "of"))
    frame = [(EVENT, source(offset=number)) for number in range(6)]
    found = list(admission(spec, functions=lambda _: of).admit_all(frame, NOW_MS))
    assert calls == [6]
    assert all(isinstance(each, Request) for each in found)


def test_event_from_state_is_admitted_again() -> None:
    message, place = read_waiting(write_waiting(EVENT, source()))
    again = admission().admit(message, place, NOW_MS)
    assert isinstance(again, Request)
    assert again == admitted(EVENT)


def test_defect_in_a_mapping_refuses_its_events_only(monkeypatch: pytest.MonkeyPatch) -> None:
    of = admission()

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("planted")

    flow = of._flows.of("payments")
    monkeypatch.setattr(flow, "read_all", broken)
    frame = [(EVENT, source()), (request(request_id="r"), SOURCE)]
    event, asked = of.admit_all(frame, NOW_MS)
    assert isinstance(event, Refused)
    assert event.failure.code == "internal_error"
    assert isinstance(asked, Request)


class Eager:
    """Balancers that would give every batch to another task."""

    least_backlog_ms = -1.0

    def of(self, *, is_slow: bool) -> Any:
        return self

    def is_due(self, backlog_ms: float, now_ms: float) -> bool:
        return True

    def is_worth(self, batch: Any, backlog_ms: float, now_ms: float) -> bool:
        return True

    def note_given(self, batch: Any, now_ms: float, *, is_slow: bool) -> None:
        pass

    def note_run(self) -> None:
        pass


@pytest.mark.parametrize("is_ordered", [False, True])
def test_event_of_an_ordered_flow_is_not_offloaded(is_ordered: bool) -> None:
    served = catalog()
    flows = Flows([(replace(SPEC, is_ordered=is_ordered), served.find("rows", "10"))])
    writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms, flows=flows)
    of = EventAdmission(served, MAX_MESSAGE_BYTES, 5, writer.defects, flows=flows)
    task = InferenceTask(served, session_of, writer, 0)
    pipeline = RequestPipeline(of, Router(served, lambda _: BatchCostModel()), task, writer, SchedulingPolicy())
    queue = pipeline.new_queue()
    frame = write_requests([(EVENT, source(offset=number)) for number in range(6)])
    assert pipeline.admit(frame, queue, NOW_MS) == []
    balancers: Any = Eager()
    outputs = pipeline.run_next(queue, NOW_MS, balancers)
    assert outputs is not None
    assert [type(output) for output in outputs] == ([Answer] * 6 if is_ordered else [Offload])
