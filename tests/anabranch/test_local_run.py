"""LocalRun: flows with every kind of model, with the classes that Flink drives."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from anabranch.flink_job.config import Config
from anabranch.operators.core.flows.flow_spec import FieldSpec, FlowSpec, InputSpec, OutputField
from anabranch.operators.core.outputs import Answer, DeadLetterRecord
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import Source
from anabranch.schemas.wire.carried import decode_carried
from anabranch.schemas.wire.dead_letters import DeadLetter, decode_dead_letter
from anabranch.trial.local_run import LocalRun, event_record
from tests.core.malformed_events import MALFORMED
from tests.core.models import catalog, request, session_of

SERVED = catalog(ensembles=True)
X = InputSpec("x", "FP32", (2,), (FieldSpec(("a",)), FieldSpec(("b",))))
T = InputSpec("t", "BYTES", (), (FieldSpec(("t",), default="none"),))
FLOW = FlowSpec(
    topic="in",
    to="out",
    model_name="rows",
    model_version="10",
    inputs=(X, T),
    outputs=(OutputField(("p", "y"), "y", (0,), -1), OutputField(("p", "label"), "label", (), None)),
)
Y = (OutputField(("y",), "y"),)
FLOWS = {
    "rows": FLOW,
    "cut": replace(FLOW, model_name="cut", model_version="1"),
    "mean": replace(FLOW, model_name="mean", model_version="1", outputs=Y),
    "whole": replace(
        FLOW,
        model_name="whole",
        model_version="1",
        inputs=(InputSpec("x", "FP32", (None,), (FieldSpec(("v",)),), is_whole=True),),
        outputs=Y,
    ),
}


class Fakes:
    def load(self, model: ModelSpec) -> Any:
        return session_of(model)


def serve(flow: FlowSpec, *events: bytes | None, catalog: Catalog = SERVED) -> list[tuple[str, bytes, Any]]:
    """Returns `out` or a code, the value, and the carried fields of each output."""
    run = LocalRun(Config(), catalog, [flow], Fakes())
    records = [event_record("in", number, b"", b"k%d" % number, {"h": b"%d" % number}) for number in range(len(events))]
    outputs = run.serve((event, source) for event, (_, source) in zip(events, records, strict=True))
    return sorted(map(shown, outputs), key=lambda each: int(each[2].headers[0][1]))


def shown(output: Answer | DeadLetterRecord) -> tuple[str, bytes, Any]:
    carried = decode_carried(output.carried)
    if isinstance(output, Answer):
        assert carried.topic.endswith("/out")
        return "out", output.value, carried
    return decode_dead_letter(output.value).code, output.value, carried


def test_run_of_a_plain_model_puts_outputs_into_events() -> None:
    events = [b'{"a":%d, "b":0.5,"t":"t%d"}' % (number, number) for number in range(300)]
    for number, (kind, value, carried) in enumerate(serve(FLOW, *events)):
        assert kind == "out"
        tail = b',"p":{"y":%d.0,"label":"%s"}}' % (2 * number + 1, (b"t%d" % number)[::-1])
        assert value == events[number][:-1] + tail
        assert (carried.key, carried.headers) == (b"k%d" % number, (("h", b"%d" % number),))


@pytest.mark.parametrize(
    ("model", "event", "tail"),
    [
        ("cut", b'{"a":1,"b":2,"t":"ab"}', b',"p":{"y":3.0,"label":"ba"}}'),
        ("mean", b'{"a":4,"b":8,"t":"ab"}', b',"y":[9.333333,18.666666]}'),
        ("whole", b'{"v":[1,2,3]}', b',"y":[1.0,3.0,6.0]}'),
    ],
)
def test_run_of_each_kind_of_model_answers_events(model: str, event: bytes, tail: bytes) -> None:
    [(kind, value, carried)] = serve(FLOWS[model], event)
    assert (kind, value) == ("out", event[:-1] + tail)
    assert (carried.key, carried.headers) == (b"k0", (("h", b"0"),))


@pytest.mark.parametrize("model", ["rows", "cut", "mean"])
def test_run_poison_event_is_one_letter(model: str) -> None:
    events = [b'{"a":%d,"b":0}' % (-1 if number == 3 else number) for number in range(8)]
    found = serve(FLOWS[model], *events)
    assert [kind for kind, _, _ in found] == [*["out"] * 3, "inference_failed", *["out"] * 4]
    letter: DeadLetter = decode_dead_letter(found[3][1])
    assert letter.original == events[3]
    assert (letter.source.topic, letter.source.partition, letter.source.offset) == ("in", 0, 3)


def test_run_malformed_events_are_one_letter_each() -> None:
    found = serve(FLOW, *MALFORMED.values(), None)
    assert "out" not in [kind for kind, _, _ in found]
    originals = [decode_dead_letter(value).original or b"" for _, value, _ in found]
    assert originals == [*MALFORMED.values(), b""]


def test_run_failed_events_go_on_if_asked() -> None:
    events = [b'{"a":-1,"b":0}', b'{"a":"x","b":0}', b"{", b'{"a":1,"b":0,"t":"z"}']
    passed = serve(replace(FLOW, on_error="pass"), *events)
    assert [value for _, value, _ in passed[:2]] == [
        b'{"a":-1,"b":0,"inference_error":"inference_failed"}',
        b'{"a":"x","b":0,"inference_error":"invalid_field"}',
    ]
    assert [kind for kind, _, _ in passed] == ["out", "out", "unreadable", "out"]
    assert passed[0][2].key == b"k0"
    defaults = serve(replace(FLOW, on_error="default"), *events)
    assert defaults[0][1] == b'{"a":-1,"b":0,"p":{"y":-1,"label":null},"inference_error":"inference_failed"}'


def test_run_key_of_an_event_replaces_the_old_one() -> None:
    events = [b'{"a":1,"b":0,"t":"user"}', b'{"a":1,"b":0}']
    found = serve(replace(FLOW, key=("t",)), *events)
    assert (found[0][0], found[0][2].key) == ("out", b"user")
    assert found[1][0] == "missing_field"


def test_run_output_that_fits_no_place_is_a_letter() -> None:
    found = serve(FLOW, b'{"a":1,"b":0,"p":7}', b'{"a":2,"b":0,"p":null}')
    assert [kind for kind, _, _ in found] == ["invalid_field", "out"]


def test_run_answer_over_the_limit_is_a_letter() -> None:
    run = LocalRun(Config().replace(kafka={"max_response_bytes": 60}), SERVED, [FLOW], Fakes())
    small, large = b'{"a":1,"b":0}', b'{"a":1,"b":0,"note":"' + b"x" * 60 + b'"}'
    outputs = run.serve([event_record("in", 0, small), event_record("in", 1, large)])
    assert sorted(kind for kind, _, _ in map(shown, outputs)) == ["out", "response_too_large"]


def test_run_text_that_is_not_utf8_fails_its_event_only() -> None:
    class Odd(Fakes):
        def load(self, model: ModelSpec) -> Any:
            class Session:
                def run(self, outputs: Any, inputs: Any) -> Any:
                    y, label = session_of(model).run(outputs, inputs)
                    label[1] = b"\xff"
                    return [y, label]

            return Session()

    run = LocalRun(Config(), SERVED, [FLOW], Odd())
    events = [event_record("in", number, b'{"a":%d,"b":0}' % number) for number in range(3)]
    found = {decode_key(output): output for output in run.serve(events)}
    assert isinstance(found[1], DeadLetterRecord)
    assert decode_dead_letter(found[1].value).code == "wrong_datatype"
    assert json.loads(found[2].value)["p"]["y"] == 5.0


def decode_key(output: Answer | DeadLetterRecord) -> int:
    if isinstance(output, Answer):
        return int(json.loads(output.value)["a"])
    return decode_dead_letter(output.value).source.offset


def test_run_requests_beside_events_are_answered() -> None:
    run = LocalRun(Config(), SERVED, [FLOW], Fakes())

    def records() -> Iterator[tuple[bytes, Source]]:
        yield event_record("in", 0, b'{"a":1,"b":0}')
        yield request("rows", (1.0, 2.0), request_id="r"), Source(0, 0, 5)

    outputs = list(run.serve(records()))
    assert len(outputs) == 2
    assert {output.key for output in outputs} == {b"", b"r"}
