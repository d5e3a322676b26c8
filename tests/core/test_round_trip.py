"""Requests through the whole job of `tests.simulator`, with faults.

A read_committed reader sees one answer for each request; other readers may see some again after a crash. An answer has
the right values in the right order, or names the missing rows and the reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from anabranch.operators.core.execution import batch_transfer as travelling
from anabranch.operators.core.execution import stage as staging
from anabranch.operators.core.merging import aggregator as aggregating
from anabranch.operators.core.merging import request_window as windows
from anabranch.operators.core.merging import row_ranges as merging
from anabranch.operators.core.merging.aggregator import Aggregator
from anabranch.operators.core.outputs import Answer
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling import batch_queue
from anabranch.operators.core.scheduling import request_pipeline as chain_module
from anabranch.operators.core.scheduling.batch_queue import BatchQueue, QueueChanges
from anabranch.operators.core.scheduling.credits import Credits
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.task_loop import TaskLoop
from anabranch.operators.core.transport.ticket_book import TicketBook
from anabranch.schemas.messages import Encoding, ErrorResponse
from anabranch.schemas.model import Batching
from anabranch.schemas.wire import codec
from tests.core.models import ENSEMBLES, POISON, POISON_OF, catalog
from tests.oracle import Sent
from tests.planted import mutated
from tests.simulator import Faults, Simulation, check, simulate

MODELS = ("rows", "pairs", "whole", "cut", "sums", "long", "less", "more")
NO_FAULTS = Faults(0, 0, 0)
#: Includes seeds that found defects.
SEEDS = range(400)


@st.composite
def sent(draw: st.DrawFn) -> list[Sent]:
    """Any requests, with a distinct value in every row."""
    requests = []
    for number in range(draw(st.integers(1, 6))):
        model = draw(st.sampled_from(["rows", "pairs", "whole", "cut", "sums", "long", *ENSEMBLES]))
        rows = draw(st.integers(1, 20)) * (2 if model == "pairs" else 1)
        bad = draw(st.sets(st.integers(0, rows - 1), max_size=2))
        requests.append(
            Sent(
                request_id=draw(st.sampled_from(["", "ü"])) + f"{number}",
                model=model,
                values=tuple(draw(poisons) if row in bad else 100.0 * number + row for row in range(rows)),
                timestamp_ms=draw(st.integers(0, 20)),
                encoding=draw(st.sampled_from(Encoding)),
                priority=draw(st.sampled_from([0, 1, 5, 2**31 - 1])),
                partial=draw(st.booleans()),
                timeout_ms=draw(st.sampled_from([None, 1, 10, 100])),
            )
        )
    return requests


poisons = st.sampled_from([POISON, *POISON_OF.values()])
batchings = st.builds(
    Batching,
    shard_rows=st.integers(1, 24),
    max_rows=st.integers(1, 24),
    max_delay_ms=st.sampled_from([0.0, 0.5, 5.0]),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    requests=sent(),
    by_model=st.fixed_dictionaries(
        dict.fromkeys(("rows", "pairs", "whole", "cut", "sums", "long", "less", "more"), batchings)
    ),
    faults=st.builds(Faults, *[st.sampled_from([0.0, 0.05, 0.2])] * 2, st.sampled_from([0.0, 0.05])),
    seed=st.integers(0, 2**32),
)
def test_job_any_requests_are_answered_once_and_rightly(
    requests: list[Sent], by_model: dict[str, Batching], faults: Faults, seed: int
) -> None:
    job = Simulation(requests, catalog(by_model=by_model, ensembles=True), seed, faults)
    job.run()
    check(job)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_job_seeded_runs_keep_every_guarantee() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        job = simulate(seed)
        seen["crashes"] += job.crashes
        seen["restored"] += job.restored
        seen["restored begun"] += job.restored_begun
        seen["offloaded"] += job.offloaded
        seen["ran apart"] += job.ran_apart
        seen["tickets back"] += job.tickets_back
        seen["tickets lost"] += job.tickets_lost
        seen["records that passed full readers"] += job.passed
        seen["answers that only a crash repeats"] += len(job.seen) - len(job.visible)
        seen["lost"] += sum(bool(fate.lost) for fate in job.fates.values())
        for _, output in job.visible:
            if isinstance(output, Answer):
                answer = codec.decode_response(output.value)
                seen[answer.code if isinstance(answer, ErrorResponse) else f"{min(len(answer.parameters), 1)}"] += 1
                if not isinstance(answer, ErrorResponse) and answer.model_name in ENSEMBLES:
                    seen[f"ensembles {sorted(answer.parameters.keys() - {'error_code', 'error_message'})}"] += 1
    # The runs must see every fault.
    assert seen["crashes"] > len(SEEDS)
    assert seen["restored"] > len(SEEDS)
    assert seen["restored begun"] > 50
    assert seen["offloaded"] > 50
    assert seen["ran apart"] > 50
    assert seen["tickets back"] > 1000
    assert seen["tickets lost"] > 50
    assert seen["records that passed full readers"] > 3
    assert seen["answers that only a crash repeats"] > len(SEEDS)
    assert seen["lost"] > 50
    for missing in ([], ["missing_members"], ["missing_rows"]):
        assert seen[f"ensembles {missing}"] > 10, missing
    for kind in ("0", "1", "inference_failed", "deadline_exceeded", "incomplete_answer", "overloaded"):
        assert seen[kind] > 10, kind


@pytest.mark.slow
def test_job_without_faults_fails_only_expected_requests() -> None:
    for seed in range(50):
        job = simulate(seed, faults=NO_FAULTS)
        assert len(job.seen) == len(job.visible)
        assert not any(fate.lost for fate in job.fates.values())


@pytest.mark.parametrize("credits", [True, False])
def test_job_with_and_without_credits_keeps_every_guarantee(credits: bool) -> None:  # noqa: A002
    for seed in range(1000, 1040):
        simulate(seed, credits=credits)


def test_job_same_seed_gives_the_same_run() -> None:
    assert simulate(7).seen == simulate(7).seen


# ---- planted defects -----------------------------------------------------------------------------------------------


def _unsorted(parts: Iterable[Any], key: Any = None) -> list[Any]:
    return list(parts) if key else sorted(parts)


def _keep_nothing(*_: Any) -> None:
    """Ignores a write to state, or a read from it."""


def _reopen(window: windows.Window, failure: Any, now_ms: float, close: Any = windows.Window._close) -> Any:
    closing = close(window, failure, now_ms)
    window._state = windows._Snapshot()
    return closing


def _all_complete(window: windows.Window, find: Any = windows.Window._find_gaps) -> Any:
    members = window._state.members
    return (list(range(len(members))), []) if members else find(window)


def _forget_failures(window: windows.Window) -> bytes:
    return windows._VERSION_BYTE + windows._encoder.encode(replace(window._state, failed=[]))


def _forget_arrivals(queue: BatchQueue, settle: Any = BatchQueue.settle) -> QueueChanges:
    return QueueChanges([], settle(queue).departed)


def _forget_departures(queue: BatchQueue, settle: Any = BatchQueue.settle) -> QueueChanges:
    return QueueChanges(settle(queue).arrived, [])


def _restore_nothing(*_: Any) -> list[Any]:
    return []


def _pack_twice(requests: Sequence[Request], pack: Any = travelling.pack) -> Any:
    return pack([*requests, requests[-1]])


def _lose_the_late(queue: BatchQueue, now_ms: float, expire: Any = BatchQueue._expire) -> list[Request]:
    expire(queue, now_ms)
    return []


def _whole_unit(members: Any, first_row: int, rows: int, within: Any = staging.rows_within) -> Any:
    """Sends a unit with failed rows on as if none had failed."""
    return within(members, 0, first_row + rows)


PLANTED: dict[str, AbstractContextManager[Any]] = {
    "duplicates are merged twice": patch.object(windows, "not_covered", lambda _, *rows: [rows]),
    "rows are merged as they came": patch.object(merging, "sorted", _unsorted, create=True),
    "a closed window opens again": patch.object(windows.Window, "_close", _reopen),
    "missing rows are not named": patch.object(windows, "missing_ranges", lambda *_: []),
    "missing members are not named": patch.object(windows, "_missing_members", lambda *_: []),
    "members that are not complete are merged": patch.object(windows.Window, "_find_gaps", _all_complete),
    "failed rows are not in the snapshot": patch.object(windows.Window, "snapshot", _forget_failures),
    "what waits is not put into state": patch.object(BatchQueue, "settle", _forget_arrivals),
    "what left stays in state": patch.object(BatchQueue, "settle", _forget_departures),
    "what waited is not restored": patch.object(RequestPipeline, "restore", _restore_nothing),
    "a newcomer takes the place in state of what was restored": mutated(
        BatchQueue, "add", "request.number >= self._next_number", "False"
    ),
    "no wake-up after a slice": patch.object(BatchQueue, "next_deadline", _keep_nothing),
    "rows that failed in a stage go on": patch.object(staging, "rows_within", _whole_unit),
    "a request is in its batch twice": patch.object(chain_module, "pack", _pack_twice),
    "what expires is not answered": patch.object(BatchQueue, "_expire", _lose_the_late),
    "time slice is ignored": mutated(TaskLoop, "_work", "2 * now_ms - began_ms >= stop_ms and", "False and"),
    "superseded timers run": mutated(TaskLoop, "on_timer", "not in (None, at_ms)", "in ()"),
    "pause never resets": mutated(TaskLoop, "on_timer", "self._came_in = not self._came_in, False", "_ = True, None"),
    "wake-up is too late": mutated(TaskLoop, "_next_wake_up", "max(ceil(due_ms)", "max(200_000 + ceil(due_ms)"),
    "wrong key is drained": mutated(TaskLoop, "on_timer", "key != self._key", "False"),
    "drained requests stay in state": mutated(
        TaskLoop, "_continue_foreign", "changes.departed, foreign", "[], foreign"
    ),
    "foreign queue has no further timer": mutated(
        TaskLoop, "_continue_foreign", "departed, foreign.wakes_at_ms)", "departed, None)"
    ),
    "slice of a foreign queue is ignored": mutated(
        TaskLoop, "_work", "queue is own and queue.is_full", "queue is not own"
    ),
    "own requests stay in state": mutated(TaskLoop, "_settle_own", "changes.departed, wake_at_ms,", "[], wake_at_ms,"),
    "window closes twice": mutated(Aggregator, "on_timer", "snapshot=window.snapshot()", "snapshot=None"),
    "window is never forgotten": patch.object(windows.Window, "is_forgotten", lambda *_: False),
    "window is forgotten before all rows came": mutated(windows.Window, "is_forgotten", "<= sum(", "and sum("),
    "kept records stay after closing": mutated(Aggregator, "on_record", "clears_kept=True", "clears_kept=False"),
    "timer of a window is not registered": mutated(
        aggregating, "_move_timer", "at_ms == before_at_ms", "before_at_ms is None"
    ),
    "timer of a window stays when it moves": mutated(aggregating, "_move_timer", "cancel_at_ms=before_at_ms", ""),
    "timer of a forgotten window stays": mutated(aggregating, "_forget", "cancel_at_ms=before_at_ms, ", ""),
    "timer of a closed window is not registered": mutated(
        Aggregator, "on_timer", "_move_timer(window, before_at_ms, ", "("
    ),
    "record that closes a window is not merged": mutated(
        Aggregator, "on_record", "[] if keep is None else [keep]", "[]"
    ),
    "record is not kept": mutated(Aggregator, "on_record", "keep=keep", "keep=None"),
    "begun request is not marked in state": mutated(
        BatchQueue, "settle_split", "self._begun[request.number] = request", "pass"
    ),
    "begun request that expires is answered by the queue, too": mutated(
        BatchQueue, "_expire", "[request for request in expired if not _has_begun(request)]", "expired"
    ),
    "split request leaves state with its first record": mutated(
        BatchQueue, "settle_split", "request.split.is_done", "True"
    ),
    "begun request is shed": mutated(batch_queue._SplitGroup, "from_last", " and not _has_begun(entry[1])", ""),
    "slow batch is not put into state": mutated(BatchQueue, "settle", "if self.running", "if False"),
    "slow batch stays in state": mutated(BatchQueue, "end_slow", "self._note_left(batch)", "..."),
    "slow batch is never looked for": mutated(BatchQueue, "next_deadline", "and not self.running", ""),
    "two slow batches start": mutated(
        BatchQueue, "_lane_has_room", "not self.running and self._lane is not None and self._lane.has_room", "True"
    ),
    "slow batch is answered at its start, too": mutated(
        RequestPipeline,
        "run_next",
        "        else:\n            outputs += self._run",
        "        outputs += self._run",
    ),
    "lost ticket blocks for ever": mutated(Credits, "expire", "+ self._lease_ms <=", "+ 9e12 <="),
    "credit is given back twice": mutated(Credits, "returned", "del self._under_way[ticket]", "..."),
    "ticket of another attempt is counted": mutated(TicketBook, "take_back", "back.token == self._token and ", ""),
    "batch leaves for its own task": mutated(Credits, "_choose", "reader != avoid or readers == 1", "True"),
    "restored outputs are dropped": mutated(
        TaskLoop, "on_timer", "yield from self._emit(self._pipeline.restore", "(self._pipeline.restore"
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", PLANTED)
def test_job_planted_defect_is_caught(defect: str) -> None:
    with PLANTED[defect], pytest.raises((AssertionError, StopIteration)) as caught:
        simulate_all(range(200))
    assert "tests.simulator.simulate(" in caught.value.__notes__[0]


def simulate_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        simulate(seed)
