"""RequestPipeline: from Kafka records to answers, and through state and back."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

import pytest

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.merging.request_window import Window, answer_of
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, WindowPart
from anabranch.operators.core.requests import Refused, Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling import router as sharding_module
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.operators.core.scheduling.batch_queue import BatchQueue, begun_key
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.schemas.frames import WAITING_VERSION, write_begun, write_requests
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.schemas.messages import ErrorResponse, InferResponse
from anabranch.schemas.model import Batching, Catalog
from anabranch.schemas.records import FailureRecord, Source
from anabranch.schemas.wire import codec
from anabranch.schemas.wire.dead_letters import decode_dead_letter
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, POISON, catalog, expected, now_ms, request, session_of

SERVED = catalog()
PATIENT = catalog(Batching(shard_rows=4, max_rows=8, max_delay_ms=2.0))


class StateChanges(NamedTuple):
    """Number and frame of requests for state, and numbers of those that left it."""

    arrived: list[tuple[int, bytes]]
    departed: list[int]


class QueuedPipeline:
    """A pipeline with one queue."""

    def __init__(self, pipeline: RequestPipeline, balancer: LaneBalancers | None) -> None:
        self.pipeline, self.balancer, self.queue = pipeline, balancer, pipeline.new_queue()
        self.next_deadline = self.queue.next_deadline

    @property
    def is_full(self) -> bool:
        return self.queue.is_full

    def on_frame(self, frame: bytes, now_ms: float) -> list[Output]:
        return self.pipeline.admit(frame, self.queue, now_ms)

    def restore(self, held: Iterable[tuple[int, bytes]], now_ms: float) -> list[Output]:
        return self.pipeline.restore(held, self.queue, now_ms)

    def next(self, now_ms: float, *, all_is_due: bool = False) -> list[Output] | None:
        balancer = None if all_is_due else self.balancer
        return self.pipeline.run_next(self.queue, now_ms, balancer, all_is_due=all_is_due)

    def settle(self) -> StateChanges:
        changes = self.queue.settle()
        held = [(each.number, write_requests([(each.original, each.source)])) for each in changes.arrived]
        held += [(begun_key(each.number), write_begun(each.split.rows)) for each in changes.begun if each.split]
        return StateChanges(held, changes.departed)


NOTHING = StateChanges([], [])


def pipeline_of(
    served: Catalog = SERVED,
    policy: SchedulingPolicy = SchedulingPolicy(max_waiting_bytes=10**6),  # noqa: B008 - it is frozen
    clock: Callable[[], float] = now_ms,
    offloading: LaneBalancers | None = None,
) -> QueuedPipeline:
    response_writer = ResponseWriter("requests", MAX_MESSAGE_BYTES, clock)
    pipeline = RequestPipeline(
        Admission(served, MAX_MESSAGE_BYTES, 5, Defects(Meter())),
        Router(served, lambda _: known_costs()),
        InferenceTask(served, session_of, response_writer, task=0),
        response_writer,
        policy,
    )
    return QueuedPipeline(pipeline, offloading)


def known_costs() -> BatchCostModel:
    """About a millisecond per row, and least for eight rows."""
    costs = BatchCostModel([Measurement(1, 1.1), Measurement(8, 8.0)])
    costs.observe(1, 1.1)
    return costs


def frame(*messages: bytes | None, first_offset: int = 0) -> bytes:
    return write_requests([(message, Source(0, first_offset + n, int(NOW_MS))) for n, message in enumerate(messages)])


def named(request_id: str, rows: int = 1, **options: Any) -> bytes:
    return request(values=[float(n) for n in range(rows)], request_id=request_id, **options)


def work(of: QueuedPipeline, now_ms: float = NOW_MS, *, all_is_due: bool = False) -> list[Output]:
    outputs: list[Output] = []
    while (more := of.next(now_ms, all_is_due=all_is_due)) is not None:
        outputs += more
    return outputs


def answers(outputs: list[Output]) -> dict[str, str]:
    """Id -> code, or "" for correct rows; checks that every failure has a dead letter."""
    found: dict[str, str] = {}
    for output in outputs:
        if isinstance(output, Answer):
            answer = codec.decode_response(output.value)
            assert answer.id not in found
            if isinstance(answer, ErrorResponse):
                found[answer.id] = answer.code
            else:
                values = [float(n) for n in range(answer.outputs[0].shape[0])]
                assert {t.name: t.to_array().tolist() for t in answer.outputs} == expected("rows", values)
                found[answer.id] = ""
    dead_letters = [decode_dead_letter(output.value).id for output in outputs if isinstance(output, DeadLetterRecord)]
    assert sorted(filter(None, dead_letters)) == sorted(name for name, code in found.items() if code)
    return found


def test_pipeline_frame_is_answered_together() -> None:
    task = pipeline_of()
    assert task.on_frame(frame(named("a"), named("b", 2), named("c", 3)), NOW_MS) == []
    assert task.next_deadline() == 0
    assert answers(task.next(NOW_MS) or []) == {"a": "", "b": "", "c": ""}
    assert (task.next(NOW_MS), task.next_deadline()) == (None, None)
    assert task.settle() == NOTHING


def test_pipeline_empty_frame_gives_nothing() -> None:
    assert pipeline_of().on_frame(b"", NOW_MS) == []


def test_pipeline_refused_request_is_answered_at_once() -> None:
    task = pipeline_of()
    refused = task.on_frame(frame(named("a"), request("nobody", request_id="b"), None, named("c")), NOW_MS)
    assert answers(refused) == {"b": "unknown_model"}
    assert sum(isinstance(output, DeadLetterRecord) for output in refused) == 2  # a tombstone has no sender to answer
    assert answers(work(task)) == {"a": "", "c": ""}


def test_pipeline_large_request_leaves_record_by_record() -> None:
    task = pipeline_of()
    assert task.on_frame(frame(named("a", 9), named("b")), NOW_MS) == []
    assert [type(output) for output in task.next(NOW_MS) or []] == [WindowPart, Shard]
    assert [number for number, _ in task.settle().arrived] == [0, 1, begun_key(0)], "state holds it until all left"
    task.on_frame(frame(named("c", parameters={"priority": 1}), first_offset=2), NOW_MS)
    assert answers(task.next(NOW_MS) or []) == {"c": "", "b": ""}
    assert [type(output) for output in task.next(NOW_MS) or []] == [Shard]
    assert task.settle() == StateChanges([], [1])
    assert [type(output) for output in task.next(NOW_MS) or []] == [Shard]
    assert sorted(task.settle().departed) == [begun_key(0), 0]
    assert task.next_deadline() is None


@pytest.mark.parametrize(("upgraded", "parts"), [(4, 3), (16, 1)])
def test_pipeline_begun_request_goes_on_without_an_opening(upgraded: int, parts: int) -> None:
    before = pipeline_of()
    before.on_frame(frame(named("a", 9)), NOW_MS)
    before.next(NOW_MS)
    after = pipeline_of(catalog(Batching(shard_rows=upgraded)))
    assert after.restore(before.settle().arrived, NOW_MS) == []
    assert [type(output) for output in work(after)] == [Shard] * parts
    assert sorted(after.settle().departed) == [begun_key(0), 0]


def begun(**parameters: Any) -> list[tuple[int, bytes]]:
    """State of a request that has begun."""
    before = pipeline_of()
    before.on_frame(frame(named("a", 9, parameters=parameters)), NOW_MS)
    before.next(NOW_MS)
    return before.settle().arrived


def test_pipeline_begun_request_of_gone_model_fails() -> None:
    after = pipeline_of(catalog(without=["rows"]))
    [part] = after.restore(begun(), NOW_MS)
    assert isinstance(part, WindowPart)
    failed = FailureRecord.decode(part.value)
    assert (failed.segment.first_row, failed.segment.rows, failed.failure.code) == (0, 9, "unknown_model")
    assert sorted(after.settle().departed) == [begun_key(0), 0]


def test_pipeline_late_begun_request_is_answered_by_its_window() -> None:
    after = pipeline_of()
    assert after.restore(begun(timeout=5_000), NOW_MS + 6) == []
    assert sorted(after.settle().departed) == [begun_key(0), 0]
    during = pipeline_of()
    assert during.restore(begun(timeout=5_000), NOW_MS + 1) == []
    assert during.next(NOW_MS + 6) is None
    assert sorted(during.settle().departed) == [begun_key(0), 0]


def test_pipeline_rows_at_fault_fail_only_their_request() -> None:
    task = pipeline_of()
    task.on_frame(frame(named("a"), request(values=[POISON], request_id="b"), named("c")), NOW_MS)
    assert answers(work(task)) == {"a": "", "b": "inference_failed", "c": ""}


@pytest.mark.parametrize("rows", [1, 9])
def test_pipeline_late_request_is_answered_and_not_run(rows: int) -> None:
    task = pipeline_of()
    late = task.on_frame(frame(named("a", rows, parameters={"timeout": 1_000})), NOW_MS + 1)
    assert answers(late) == {"a": "deadline_exceeded"}
    assert task.next(NOW_MS + 1) is None
    counted = task.pipeline._response_writer.meter.drain()
    assert (counted["clock", "behind_requests"], counted["clock", "behind_ms"]) == (1, 1)


def test_pipeline_expired_request_names_its_model() -> None:
    task = pipeline_of()
    task.on_frame(frame(named("a", parameters={"timeout": 1_000, "priority": 9}), named("b")), NOW_MS)
    outputs = task.next(NOW_MS + 1) or []
    assert answers(outputs) == {"a": "deadline_exceeded", "b": ""}
    [dead_letter] = [decode_dead_letter(output.value) for output in outputs if isinstance(output, DeadLetterRecord)]
    assert (dead_letter.stage, dead_letter.model_name, dead_letter.model_version) == ("shard", "rows", "10")


def test_pipeline_defect_fails_only_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(sharding_module, "shards", fail)
    task = pipeline_of()
    task.on_frame(frame(named("a"), named("b", 9, parameters={"priority": 1}), named("c")), NOW_MS)
    outputs = task.next(NOW_MS) or []
    assert answers(outputs) == {"b": "internal_error"}
    [dead_letter] = [decode_dead_letter(output.value) for output in outputs if isinstance(output, DeadLetterRecord)]
    assert (dead_letter.message, dead_letter.stage, dead_letter.original) == (
        "RuntimeError: defect",
        "shard",
        named("b", 9, parameters={"priority": 1}),
    )
    assert answers(work(task)) == {"a": "", "c": ""}


@pytest.mark.parametrize(("name", "priority"), [("a", 5), ("c", 6)])
def test_pipeline_defect_of_alike_requests_fails_one(monkeypatch: pytest.MonkeyPatch, name: str, priority: int) -> None:
    """Others of the frame are queued once, also where they were to be queued together."""
    add = BatchQueue.add

    def fail(queue: BatchQueue, request: Request, *more: Any) -> None:
        if request.id == name:
            raise RuntimeError("defect")
        add(queue, request, *more)

    monkeypatch.setattr(BatchQueue, "add", fail)
    task = pipeline_of()
    messages = [named(each, parameters={"priority": priority if each == name else 5}) for each in "abcde"]
    assert answers(task.on_frame(frame(*messages), NOW_MS)) == {name: "internal_error"}
    assert answers(work(task)) == dict.fromkeys(sorted(set("abcde") - {name}), "")


@pytest.mark.parametrize("of_flow", [0, 4])
def test_pipeline_order_of_one_alike_request_holds_for_all(monkeypatch: pytest.MonkeyPatch, of_flow: int) -> None:
    task = pipeline_of()
    admit_all = task.pipeline._admission.admit_all

    def with_order(*arguments: Any) -> Sequence[Request | Refused]:
        admitted = list(admit_all(*arguments))
        request = admitted[of_flow]
        assert isinstance(request, Request)
        request.holds_order = True
        return admitted

    monkeypatch.setattr(task.pipeline._admission, "admit_all", with_order)
    task.on_frame(frame(*map(named, "abcde")), NOW_MS)
    [group] = task.queue._groups.values()
    assert group.in_order


def test_pipeline_defect_on_restore_fails_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = pipeline_of(catalog(Batching(shard_rows=16)))
    before.on_frame(frame(named("a"), named("b", 9), named("c")), NOW_MS)

    def fail(*_: object) -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(sharding_module, "shards", fail)
    after = pipeline_of(catalog(Batching(shard_rows=4)))
    assert after.restore(before.settle().arrived, NOW_MS) == []
    assert answers(work(after)) == {"a": "", "b": "internal_error", "c": ""}
    assert set(after.settle().departed) == {0, 1, 2}


# ---- latency breakdown --------------------------------------------------------------------------------------------


def test_pipeline_phases_sum_to_the_total_time() -> None:
    ticks = count(int(NOW_MS) + 5)  # each reading of the clock is 1 ms later
    task = pipeline_of(clock=lambda: float(next(ticks)))
    task.on_frame(frame(named("a", parameters={"explain": True}), named("b")), NOW_MS + 4)
    first, second = (codec.decode_response(output.value) for output in task.next(NOW_MS + 6) or [])
    assert isinstance(first, InferResponse)
    assert isinstance(second, InferResponse)
    assert second.parameters == {}
    spent_us = [first.parameters[f"{stage}_us"] for stage in PHASES]
    # read at 4, admitted at 5, taken at 6, started at 7, ended at 8, written at 9
    assert spent_us == [4000, 1000, 1000, 1000, 1000, 0, 1000]


def test_pipeline_split_request_takes_the_time_of_its_last_shard() -> None:
    clock_ms = NOW_MS + 2
    task = pipeline_of(clock=lambda: clock_ms)
    task.on_frame(frame(named("a", 9, parameters={"explain": True})), NOW_MS + 1)
    opening, *shards = work(task)
    assert isinstance(opening, WindowPart)
    window = Window(SchedulingPolicy())
    kept = [opening.value]
    assert window.on_record(opening.value, NOW_MS)[1] is None
    closing = None
    for place, shard in enumerate(shards):
        clock_ms = NOW_MS + 10 * (place + 1)
        [part] = task.pipeline._inference.on_shard(shard.value, clock_ms - 3)
        _, closing = window.on_record(part.value, clock_ms)
        kept.append(part.value)
    assert closing is not None
    clock_ms += 4
    [output] = answer_of(closing, kept, task.pipeline._response_writer)
    answer = codec.decode_response(output.value)
    assert isinstance(answer, InferResponse)
    assert [answer.parameters[f"{stage}_us"] for stage in PHASES] == [1000, 1000, 25_000, 3000, 0, 4000, 0]


def test_pipeline_counts_answers_by_model_and_errors_by_code() -> None:
    task = pipeline_of()
    task.on_frame(frame(named("a"), named("b", 2), request(values=[POISON], request_id="c"), request("nobody")), NOW_MS)
    work(task)
    counted = task.pipeline._response_writer.meter.drain()
    assert counted["model", "rows-10", "requests"] == 2
    assert counted["model", "rows-10", "rows"] == 3
    assert counted["error", "inference_failed", "requests"] == 1
    assert counted["error", "unknown_model", "requests"] == 1


# ---- overload -----------------------------------------------------------------------------------------------------


def test_pipeline_overload_refuses_the_least_urgent() -> None:
    task = pipeline_of(policy=SchedulingPolicy(overload="refuse", max_backlog_ms=10.0))
    priorities = [1 + n % 3 for n in range(20)]
    messages = [named(f"{n}", parameters={"priority": priority}) for n, priority in enumerate(priorities)]
    refused = answers(task.on_frame(frame(*messages), NOW_MS))
    assert set(refused.values()) == {"overloaded"}
    assert {priorities[int(name)] for name in refused} == {2, 3}
    served = answers(work(task))
    assert (len(served), set(served.values())) == (9, {""})
    assert not task.is_full


def test_pipeline_refused_request_leaves_state() -> None:
    task = pipeline_of(PATIENT, SchedulingPolicy(overload="refuse", max_backlog_ms=4.0))
    task.on_frame(frame(named("a", parameters={"priority": 9}), named("b")), NOW_MS)
    assert [number for number, _ in task.settle().arrived] == [0, 1]
    refused = task.on_frame(frame(*[named(f"{n}", parameters={"priority": 1}) for n in range(3)]), NOW_MS)
    assert answers(refused) == {"a": "overloaded", "b": "overloaded"}
    changes = task.settle()
    assert ([number for number, _ in changes.arrived], sorted(changes.departed)) == ([2, 3, 4], [0, 1])


def test_pipeline_overload_without_refusal_is_full() -> None:
    task = pipeline_of(policy=SchedulingPolicy(max_waiting_bytes=len(named("a"))))
    full = []
    for name in "ab":
        assert task.on_frame(frame(named(name)), NOW_MS) == []
        full.append(task.is_full)
    assert full == [False, True]
    assert answers(work(task)) == {"a": "", "b": ""}
    assert task.is_full is False


def test_pipeline_unreachable_deadline_fails_early() -> None:
    task = pipeline_of()
    task.on_frame(
        frame(named("a", 4, parameters={"timeout": 3_000}), named("b", 2, parameters={"timeout": 3_000})), NOW_MS
    )
    outputs = work(task)
    assert answers(outputs) == {"a": "deadline_exceeded", "b": ""}
    [dead_letter] = [decode_dead_letter(output.value) for output in outputs if isinstance(output, DeadLetterRecord)]
    assert dead_letter.message == "the deadline is in 3.0 ms, but the model needs longer: raise the request's timeout"


# ---- restored requests --------------------------------------------------------------------------------------------


def test_pipeline_state_holds_queued_records_unchanged() -> None:
    task = pipeline_of(PATIENT)
    task.on_frame(frame(named("a"), named("b", 9), named("c"), first_offset=4), NOW_MS)
    changes = task.settle()
    named_so = (named("a"), named("b", 9), named("c"))
    assert changes == StateChanges([(n, frame(each, first_offset=4 + n)) for n, each in enumerate(named_so)], [])
    assert answers(work(task, NOW_MS + 2)) == {"a": "", "c": ""}
    assert sorted(task.settle().departed) == [0, 1, 2]


def test_pipeline_restore_serves_requests_in_order() -> None:
    before = pipeline_of(PATIENT)
    before.on_frame(frame(named("a"), request(values=[POISON], request_id="b"), first_offset=4), NOW_MS)
    after = pipeline_of(PATIENT)
    assert after.restore(reversed(before.settle().arrived), NOW_MS + 1) == []  # Flink's state is not ordered
    assert (after.next_deadline(), after.settle()) == (0, NOTHING)
    outputs = work(after, NOW_MS + 1)
    assert [output.key for output in outputs if isinstance(output, Answer)] == [b"a", b"b"]
    [dead_letter] = [decode_dead_letter(output.value) for output in outputs if isinstance(output, DeadLetterRecord)]
    assert dead_letter.source.offset == 5
    assert after.settle() == StateChanges([], [0, 1])


def test_pipeline_restore_of_unservable_request_answers_it() -> None:
    before = pipeline_of(PATIENT)
    before.on_frame(frame(named("a"), named("b", parameters={"timeout": 1_000})), NOW_MS)
    held = before.settle().arrived
    assert len(held) == 2
    upgraded = pipeline_of(catalog(without=["rows"]))
    assert answers(upgraded.restore(held, NOW_MS)) == {"a": "unknown_model", "b": "unknown_model"}
    assert upgraded.settle() == StateChanges([], [0, 1])
    late = pipeline_of(PATIENT)
    assert answers(late.restore(held, NOW_MS + 1)) == {"b": "deadline_exceeded"}
    assert late.settle() == StateChanges([], [1])
    assert answers(work(late, NOW_MS + 1)) == {"a": ""}
    assert late.settle() == StateChanges([], [0])


def test_pipeline_at_end_of_input_ignores_delays() -> None:
    task = pipeline_of(PATIENT)
    task.on_frame(frame(named("a")), NOW_MS)
    assert work(task) == []
    [answer] = work(task, all_is_due=True)
    assert isinstance(codec.decode_response(answer.value), InferResponse)


# ---- offloading ---------------------------------------------------------------------------------------------------


def behind(served: Catalog = SERVED) -> QueuedPipeline:
    """A task with five queued batches of four rows."""
    of = pipeline_of(served, offloading=LaneBalancers(SchedulingPolicy(offload_backlog_ms=8.0), 2))
    of.on_frame(frame(*[named(f"{n}", rows=4, parameters={"priority": n % 9 + 1}) for n in range(5)]), NOW_MS)
    return of


ONE_EACH = catalog(Batching(shard_rows=4, max_rows=4))


def test_pipeline_offloaded_batch_gives_the_same_answers() -> None:
    outputs = work(behind(ONE_EACH))
    assert [type(output) for output in outputs] == [Offload, Answer, Offload, Answer, Answer]  # no longer late
    elsewhere = InferenceTask(ONE_EACH, session_of, ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms), task=1)
    there = [elsewhere.on_exchange(output.value, NOW_MS) for output in outputs if isinstance(output, Offload)]
    assert list(answers(outputs)) == ["0", "1", "2"]
    assert [answers([*each]) for each in there] == [{"4": ""}, {"3": ""}]


def test_pipeline_offloaded_request_leaves_state() -> None:
    of = behind(ONE_EACH)
    assert len(of.settle().arrived) == 5
    assert [type(output) for output in of.next(NOW_MS) or []] == [Offload]
    of.next(NOW_MS)
    assert of.settle() == StateChanges([], [4, 0])


def test_pipeline_request_that_left_is_never_stored() -> None:
    of = behind(ONE_EACH)
    of.next(NOW_MS)
    assert [number for number, _ in of.settle().arrived] == [0, 1, 2, 3]


def test_pipeline_at_end_of_input_offloads_nothing() -> None:
    assert len(answers(work(behind(ONE_EACH), all_is_due=True))) == 5


def test_pipeline_full_exchange_gets_fewer_batches() -> None:
    of = behind(ONE_EACH)
    of.next(NOW_MS)
    assert of.balancer is not None
    of.balancer.note_wait(100.0, NOW_MS)
    assert not any(isinstance(output, Offload) for output in work(of))


def test_pipeline_restore_of_undecodable_request_notes_it() -> None:
    before, after = pipeline_of(served=PATIENT), pipeline_of()
    before.on_frame(frame(request(request_id="a")), NOW_MS)
    [(number, held)] = before.settle().arrived
    assert held[0] == WAITING_VERSION
    for broken in (b"", b"\x02" + held[1:], held[:10]):
        assert after.restore([(number, broken)], NOW_MS) == []
    assert after.settle() == StateChanges([], [number] * 3)
    noted = after.pipeline._response_writer.defects.drain()
    assert [(each.phase, each.detail) for each in noted] == [("queue", f"undecodable queued request {number}")] * 3
