"""Flink operator that admits, queues and runs requests: translates between Flink and `core.scheduling.task_loop`.

Keyed map state holds queued requests by number, from which a restart fills the queue.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import MapStateDescriptor

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.flows.event_admission import EventAdmission
from anabranch.operators.core.flows.flows import Flows
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_queue import LOOK_AGAIN_MS
from anabranch.operators.core.scheduling.key_groups import task_key
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers, OtherTasks
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.task_loop import LATE_MS, Action, Settlement, TaskLoop
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.flink_compat import integer_key
from anabranch.operators.runtime.operator_runtime import OperatorRuntime, RuntimeOperator
from anabranch.operators.runtime.side_outputs import emit
from anabranch.operators.runtime.task_context import now_ms
from anabranch.operators.sessions.step_functions import load_function
from anabranch.operators.transport.endpoints import AGGREGATE, INFER
from anabranch.operators.transport.frame_memory import open_frame
from anabranch.schemas.model import Catalog
from anabranch.schemas.wire.carried import ReplyTopics

#: Each look costs a bundle.
_LOOK_AGAIN_PROCESS_MS = 10.0


@dataclass(eq=False)
class ServeFunction(RuntimeOperator, KeyedProcessFunction):
    """Row(task key, frame of Kafka records) -> frames of answers; side outputs: dead letters, parts, work, units."""

    catalog: Catalog
    backend: Backend
    response_writer: ResponseWriter
    max_message_bytes: int
    policy: SchedulingPolicy
    keys_by_group: tuple[int, ...]
    exchange: TransportOptions
    reply_topics: tuple[str, ...] = ()
    flows: Flows = field(default_factory=Flows)

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open state and load all models."""
        writer, policy = self.response_writer, self.policy
        self._runtime = runtime = OperatorRuntime(runtime_context, "serve", self.exchange, writer)
        # Thread mode gives PRIMITIVE_ARRAY state back as tuples of integers.
        self._waiting = runtime_context.get_map_state(
            MapStateDescriptor("waiting", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        task, sessions = runtime.task, runtime.sessions(self.backend)
        catalog = sessions.load_all(self.catalog)
        runtime.note_opened(catalog.left_out[len(self.catalog.left_out) :])
        desk, parts = runtime.desk(), runtime.sender(AGGREGATE, task.parallelism)
        others, idle, issue, issue_to_others = None, None, None, None
        if desk is not None:
            others = runtime.credits(task.parallelism)
            target = desk.add(others)
            issue = partial(desk.issue, target)
            # The own exchange operator would wait for this task.
            idle, issue_to_others = OtherTasks(others, task.index), partial(issue, avoid=task.index)
        shards = runtime.sender(INFER, task.parallelism, issue)
        batches = runtime.sender(INFER, task.parallelism, issue_to_others)
        units = runtime.units(self.catalog.in_stages(), desk)
        offloads = policy.offloads and task.parallelism > 1
        self._loop = TaskLoop(
            task_key(task.index, task.parallelism, self.keys_by_group),
            RequestPipeline(
                EventAdmission(
                    catalog,
                    self.max_message_bytes,
                    policy.default_priority,
                    writer.defects,
                    ReplyTopics(self.reply_topics),
                    self.flows.with_functions(load_function),
                ),
                Router(
                    catalog,
                    sessions.costs_of,
                    shards.pack,
                    parts.pack,
                    units.pack,
                    lambda model: units.credit_of.get((model.name, model.version), others),
                ),
                InferenceTask(catalog, sessions.session_of, writer, task.index),
                writer,
                policy,
                runtime.slow_lane(),
                batches.pack_batch,
                LOOK_AGAIN_MS if task.in_jvm else _LOOK_AGAIN_PROCESS_MS,
            ),
            lambda: ((number, bytes(frame)) for number, frame in self._waiting.items()),
            runtime.lock(),
            runtime.metrics.flush,
            now_ms,
            policy,
            LaneBalancers(policy, task.parallelism, idle, learns=task.in_jvm) if offloads else None,
            desk,
            # Timers come between bundles.
            LATE_MS if task.in_jvm else -1.0,
        )

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        """Take requests of this task's own key."""
        return self._carry_out(self._loop.on_frame(open_frame(value)), ctx)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[object]:
        """Continue with a key; an event-time timer marks the end of the input."""
        key = integer_key(ctx)
        if ctx.time_domain() == TimeDomain.PROCESSING_TIME:
            return self._carry_out(self._loop.on_timer(key, timestamp), ctx)
        return self._carry_out(self._loop.on_end(key), ctx)

    def _carry_out(self, actions: Iterator[Action], ctx: KeyedProcessFunction.Context) -> Iterator[object]:
        for action in actions:
            if isinstance(action, Settlement):
                for number in action.departed:
                    self._waiting.remove(number)
                for number, frame in action.arrived:
                    self._waiting.put(number, frame)
                if action.end_at_ms is not None:
                    ctx.timer_service().register_event_time_timer(action.end_at_ms)
                if action.wake_at_ms is not None:
                    ctx.timer_service().register_processing_time_timer(action.wake_at_ms)
            else:
                yield from emit(action)
        self._runtime.defect_log.report()
