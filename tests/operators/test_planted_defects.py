"""Tests that need no engine catch planted defects; `test_round_trip` has those that the simulator sees."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest

from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.merging import aggregator
from anabranch.operators.core.merging.aggregator import Aggregator
from anabranch.operators.core.merging.request_window import Window
from anabranch.operators.core.outputs import Offload, Shard
from anabranch.operators.core.scheduling import batch_queue
from anabranch.operators.core.scheduling.batch_queue import BatchQueue
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import TaskLoop
from anabranch.operators.infer import InferFunction
from anabranch.operators.runtime import flink_metrics, operator_runtime, side_outputs
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.operator_runtime import RuntimeOperator
from anabranch.operators.runtime.process_runtime import ProcessRuntime
from anabranch.operators.runtime.slow_batch_thread import SlowBatchThread
from anabranch.operators.serve import ServeFunction
from tests.core import (
    test_aggregator,
    test_batch_queue,
    test_inference_task,
    test_load_balancer,
    test_policy,
    test_request_pipeline,
    test_request_window,
    test_slow_batches,
    test_task_loop,
)
from tests.operators import (
    test_flink_metrics,
    test_infer,
    test_operator_runtime,
    test_process_runtime,
    test_serve,
    test_side_outputs,
    test_slow_batch_thread,
)
from tests.planted import both, mutated


def with_clock(test: Callable[[list[float]], None]) -> Callable[[], None]:
    """The test with its clock, which `clock` of its module makes."""

    def run() -> None:
        now_s = [100.0]
        with patch.object(flink_metrics, "monotonic", lambda: now_s[0]):
            test(now_s)

    return run


def with_process(test: Callable[[ProcessRuntime], None]) -> Callable[[], None]:
    """The test with a registry of its own, as `process` of its module makes."""

    def run() -> None:
        process = ProcessRuntime()
        with patch.object(operator_runtime, "PROCESS", process):
            test(process)

    return run


#: The defect, and the test that has to fail.
PLANTED: dict[str, tuple[AbstractContextManager[Any], Callable[[], None]]] = {
    "late record is counted": (
        both(
            mutated(Aggregator, "on_record", "window.is_closed", "False"),
            mutated(Window, "on_record", "state.closed", "False"),
        ),
        test_aggregator.test_aggregator_late_record_changes_nothing,
    ),
    "event-time timer is not registered": (
        mutated(Aggregator, "on_record", "end_at_ms=window.opened_at_ms", "end_at_ms=None"),
        test_aggregator.test_aggregator_first_record_sets_both_timers_and_is_kept,
    ),
    "end of input closes no window": (
        mutated(Aggregator, "on_timer", "window.next_deadline() if at_ms is None else", "0.0 if at_ms is None else"),
        test_aggregator.test_aggregator_end_of_input_closes_then_forgets,
    ),
    "clock that was set back keeps a window open": (
        mutated(Aggregator, "on_timer", "max(self._clock(), at_ms)", "self._clock()"),
        test_aggregator.test_aggregator_timer_after_clock_was_set_back_closes,
    ),
    "pending counts of windows set no timer": (
        mutated(Aggregator, "_count", "not left_s", "True"),
        test_aggregator.test_aggregator_pending_counts_set_a_timer,
    ),
    "a closed window keeps its timer": (
        mutated(aggregator, "_forget", "cancel_at_ms=before_at_ms, ", ""),
        test_aggregator.test_aggregator_windows_leave_nothing_behind,
    ),
    "a timer of each closing hands counts over": (
        mutated(Aggregator, "_count", "self._counts_at_ms > self._clock()", "False"),
        test_aggregator.test_aggregator_pending_counts_set_one_timer_for_all_windows,
    ),
    "failures of neighbouring members count as one": (
        mutated(
            Window,
            "_may_get_better",
            "(first_row + rows - 1) // state.total_rows + 1",
            "first_row // state.total_rows + 1",
        ),
        test_request_window.test_window_hopeless_ensemble_closes_at_once,
    ),
    "answer frames are never split": (
        mutated(side_outputs, "emit", "size_bytes >= ANSWER_FRAME_BYTES", "False"),
        test_side_outputs.test_emit_large_answers_are_split_into_frames,
    ),
    "metrics are always 0": (
        mutated(FlinkMetrics, "flush", "counter.inc(count)", "counter.inc(0)"),
        with_clock(test_flink_metrics.test_flush_adds_counts_to_counters_once_a_second),
    ),
    "pending counts are not reported": (
        mutated(FlinkMetrics, "flush", "left_s if self._meter.has_more else 0.0", "0.0"),
        with_clock(test_flink_metrics.test_flush_adds_counts_to_counters_once_a_second),
    ),
    "state never learns of arrivals": (
        mutated(ServeFunction, "_carry_out", "self._waiting.put(number, frame)", "pass"),
        test_serve.test_serve_settlement_reaches_state_and_timers,
    ),
    "state never learns of departures": (
        mutated(ServeFunction, "_carry_out", "self._waiting.remove(number)", "pass"),
        test_serve.test_serve_settlement_reaches_state_and_timers,
    ),
    "timers are not registered": (
        mutated(ServeFunction, "_carry_out", "if action.wake_at_ms is not None", "if False"),
        test_serve.test_serve_settlement_reaches_state_and_timers,
    ),
    "end of input is taken for a timer": (
        mutated(ServeFunction, "on_timer", "== TimeDomain.PROCESSING_TIME", "is not None"),
        lambda: test_serve.test_serve_timer_of_each_domain_reaches_the_loop(7),
    ),
    "frames of process mode wait for a timer": (
        mutated(ServeFunction, "open", "LATE_MS if task.in_jvm else -1.0", "LATE_MS"),
        lambda: test_serve.check_timer_between_frames(in_jvm=False),
    ),
    "frames of thread mode wait for no timer": (
        mutated(ServeFunction, "open", "LATE_MS if task.in_jvm else -1.0", "-1.0"),
        lambda: test_serve.check_timer_between_frames(in_jvm=True),
    ),
    "process mode looks for room in each bundle": (
        mutated(ServeFunction, "open", "LOOK_AGAIN_MS if task.in_jvm else _LOOK_AGAIN_PROCESS_MS", "LOOK_AGAIN_MS"),
        lambda: test_serve.check_look_for_room(in_jvm=False),
    ),
    "thread mode seldom looks for room": (
        mutated(ServeFunction, "open", "LOOK_AGAIN_MS if task.in_jvm else", ""),
        lambda: test_serve.check_look_for_room(in_jvm=True),
    ),
    "offload window is never learned": (
        mutated(TaskLoop, "_emit", "self._balancers.note_wait(now_ms - began_ms, now_ms)", "pass"),
        lambda: test_task_loop.test_loop_is_idle_while_the_exchange_blocks([Offload(b"")]),
    ),
    "offloaded batches do not run while the task is blocked": (
        mutated(TaskLoop, "_emit", "with self._exclusion.idle()", "if True"),
        lambda: test_task_loop.test_loop_is_idle_while_the_exchange_blocks([Shard(b"")]),
    ),
    "full task reads on": (
        mutated(TaskLoop, "on_frame", " or own.is_full", ""),
        test_task_loop.test_loop_full_task_works_on_and_ignores_due_timer,
    ),
    "full task stops after its slice": (
        mutated(TaskLoop, "_work", " and not (queue is own and queue.is_full)", ""),
        test_task_loop.test_loop_full_task_works_on_and_ignores_due_timer,
    ),
    "queue is never full": (
        patch.object(BatchQueue, "is_full", False),
        test_request_pipeline.test_pipeline_overload_without_refusal_is_full,
    ),
    "counts do not wake the task": (
        mutated(TaskLoop, "_next_wake_up", "if counts_in_s", "if False"),
        test_task_loop.test_loop_pending_counts_wake_the_task,
    ),
    "the most urgent are shed": (
        mutated(batch_queue._Group, "from_last", "reversed(self._entries)", "self._entries"),
        test_batch_queue.test_queue_over_bytes_sheds_without_known_costs,
    ),
    "deadline does not order": (
        mutated(SchedulingPolicy, "urgency", "deadline_ms < leaves_ms", "False"),
        lambda: test_policy.test_policy_urgency_adds_priority_to_the_deadline(10.0, 40, 1, 140.0),
    ),
    "priority step is ignored": (
        mutated(SchedulingPolicy, "urgency", " + priority * self.priority_step_ms", ""),
        lambda: test_policy.test_policy_urgency_adds_priority_to_the_deadline(10.0, 40, 3, 340.0),
    ),
    "batch is over max_rows": (
        mutated(batch_queue._Group, "take", "rows + request.rows > max_rows", "rows > max_rows"),
        test_batch_queue.test_queue_batch_takes_rows_in_order_up_to_the_limit,
    ),
    "expired request is run": (
        mutated(BatchQueue, "take", "self._expire(now_ms)", "[]"),
        test_request_pipeline.test_pipeline_unreachable_deadline_fails_early,
    ),
    "wrong key is drained": (
        mutated(TaskLoop, "on_timer", "key != self._key", "False"),
        test_task_loop.test_loop_foreign_key_is_drained_in_slices,
    ),
    "large request is queued": (
        mutated(Router, "split", "request.rows <= route.unsplit_rows", "True"),
        test_request_pipeline.test_pipeline_large_request_leaves_record_by_record,
    ),
    "requests whose readers were full stay blocked": (
        mutated(BatchQueue, "take", "self._unblock(all_is_due=all_is_due)", "pass"),
        test_batch_queue.test_queue_full_readers_hold_up_no_other_signature,
    ),
    "work for other tasks counts as own": (
        mutated(BatchQueue, "add", "if group.target", "if False"),
        test_batch_queue.test_queue_work_for_others_is_shed_by_their_own_limit,
    ),
    "full task waits for tickets for ever": (
        mutated(TaskLoop, "_await_room", "queue.let_pass()", "pass"),
        test_task_loop.test_loop_full_task_without_tickets_lets_records_pass,
    ),
    "full readers hold up the end of the input": (
        mutated(BatchQueue, "_has_room", "all_is_due or self._lets_pass or", "self._lets_pass or"),
        test_batch_queue.test_queue_at_the_end_of_the_input_ignores_full_readers,
    ),
    "records pass full readers in later calls": (
        mutated(BatchQueue, "settle", "self._lets_pass = False", "..."),
        test_batch_queue.test_queue_lets_batches_pass_full_readers_in_one_call,
    ),
    "wait for room costs nothing": (
        mutated(BatchQueue, "note_blocked", "blocked_ms + waited_ms", "waited_ms"),
        test_batch_queue.test_queue_wait_for_room_counts_like_a_full_exchange,
    ),
    "wait for others' records counts as own": (
        mutated(BatchQueue, "_end_block", "max(blocked_at_ms, sent_at_ms)", "blocked_at_ms"),
        test_batch_queue.test_queue_wait_for_room_counts_like_a_full_exchange,
    ),
    "everything is offloaded": (
        mutated(LoadBalancer, "is_due", "backlog_ms > self._backlog_ms and ", ""),
        test_load_balancer.test_balancer_below_the_backlog_keeps_everything,
    ),
    "slow batch of another task stops the quick ones": (
        mutated(InferFunction, "_turn_of", "if is_slow", "if not is_slow"),
        lambda: test_infer.test_infer_batch_takes_the_turn_of_its_kind(4, "lane"),
    ),
    "slow batches run beside each other": (
        mutated(SlowBatchThread, "_is_free", "not self._is_taken", "True"),
        test_slow_batch_thread.test_lane_batches_of_both_kinds_run_one_at_a_time,
    ),
    "slow backlog refuses quick requests": (
        mutated(BatchQueue, "shed", "each.is_slow() == is_slow", "True"),
        test_batch_queue.test_queue_slow_backlog_sheds_no_quick_requests,
    ),
    "ordered requests run beside the task": (
        mutated(BatchQueue, "add", "request.holds_order and not group.in_order", "False"),
        test_batch_queue.test_queue_requests_in_order_never_run_beside_the_task,
    ),
    "end of the input waits for no slow batch": (
        mutated(TaskLoop, "_drain", "not self._pipeline.await_slow(queue)", "True"),
        test_slow_batches.test_slow_batch_under_way_at_the_end_is_awaited,
    ),
    "full task does not wait for slow batches": (
        mutated(TaskLoop, "_await_room", "not queue.is_full", "True"),
        test_slow_batches.test_slow_batches_of_a_full_task_are_awaited,
    ),
    "slow batch that ran apart runs again": (
        mutated(InferenceTask, "on_ran", "ran=ran.result", ""),
        test_inference_task.test_inference_batch_that_ran_apart_is_answered,
    ),
    "defects of slow batches are lost": (
        mutated(InferenceTask, "on_ran", "self._defects.note(*defect)", "pass"),
        test_inference_task.test_inference_batch_that_ran_apart_is_answered,
    ),
    "operators are never closed": (
        mutated(RuntimeOperator, "close", "self._runtime.close()", "pass"),
        with_process(
            lambda process: test_operator_runtime.test_operators_closed_in_any_order_leave_nothing(
                process, test_operator_runtime.Backend(([],)), (0, 1, 2, 3)
            )
        ),
    ),
    "ended execution keeps its memory": (
        mutated(ProcessRuntime, "acquire", "earlier += ended", "pass"),
        test_process_runtime.test_next_execution_ends_the_holds_of_earlier_ones,
    ),
    "failed attempt keeps its memory": (
        mutated(ProcessRuntime, "acquire", "other.attempt < attempt", "False"),
        test_process_runtime.test_next_attempt_ends_the_holds_of_earlier_ones,
    ),
    "object that is shared twice by one operator counts twice": (
        mutated(ProcessRuntime, "share", " and key not in holder.keys", ""),
        test_process_runtime.test_share_twice_counts_once,
    ),
    "offloaded requests stay in state": (
        mutated(BatchQueue, "_note_left", "if request.stored:", "if False:"),
        test_request_pipeline.test_pipeline_offloaded_request_leaves_state,
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:an operator of job:ResourceWarning")
@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_is_caught(defect: str) -> None:
    plant, caught_by = PLANTED[defect]
    caught_by()
    with plant, pytest.raises((AssertionError, TypeError)):
        caught_by()
    gc.collect()  # Ends the holds of a test that failed, while their warning is ignored.
