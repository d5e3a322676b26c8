"""Metrics, defect log, sessions and transport of one operator of a task."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from pyflink.datastream import RuntimeContext

from anabranch.operators.backends.base import Backend
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.credits import SLACK_MS, Credits
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.runtime.defect_log import DefectLog
from anabranch.operators.runtime.flink_compat import overlap_bundles
from anabranch.operators.runtime.flink_metrics import FlinkMetrics
from anabranch.operators.runtime.process_runtime import PROCESS
from anabranch.operators.runtime.slow_batch_thread import SlowBatchThread
from anabranch.operators.runtime.task_context import task_context_of
from anabranch.operators.runtime.task_lock import TaskLock
from anabranch.operators.sessions.session_pool import SessionPool
from anabranch.operators.transport.endpoints import Receiver, Sender, stage_receiver
from anabranch.operators.transport.ticket_returns import TicketDesk
from anabranch.schemas.model import LeftOut, ModelSpec
from anabranch.schemas.records import UnitRecord

T = TypeVar("T")

_LOGGER = logging.getLogger("anabranch.models")

#: Records wait for bundles.
_PROCESS_SLACK_MS = 50.0


class OperatorRuntime:
    """Runtime from an operator's `open` to its `close`.

    Args:
        operator: Name in logs.
    """

    def __init__(
        self, context: RuntimeContext, operator: str, options: TransportOptions, writer: ResponseWriter
    ) -> None:
        self.task = task_context_of(context)
        if not self.task.in_jvm:
            overlap_bundles()
        self.metrics = FlinkMetrics(writer.meter, context)
        self.defect_log = DefectLog(writer.defects, operator, self.task)
        self._options = options
        self._meter = writer.meter
        self._hold = PROCESS.acquire(options.job, self.task.attempt, self.task.execution)

    def lock(self) -> TaskLock:
        """Return the task's lock."""
        return self._of_task(TaskLock)

    def slow_lane(self) -> SlowBatchThread:
        """Return the task's slow batches."""
        return self._of_task(SlowBatchThread)

    def _of_task(self, make: type[T]) -> T:
        task = self.task
        return self._hold.share((make, self._options.job, task.execution, task.attempt, task.index), make)

    def sessions(self, backend: Backend) -> SessionPool:
        """Return the task's sessions."""
        return SessionPool(backend, self.task.index, self._hold.share)

    def note_opened(self, left_out: Sequence[LeftOut]) -> None:
        """Report at once that models are loaded, and the others."""
        self._meter.note_opened(left_out)
        for each in left_out:
            _LOGGER.error("%s", each.message)
        self.metrics.flush(at_once=True)

    def sender(self, to: str, readers: int, issue: Callable[[int], bytes] | None = None) -> Sender:
        """Open a sender to named receivers."""
        sender = Sender(self._options, self.task, to, readers, self._meter, issue)
        self._hold.own(sender)
        return sender

    def desk(self) -> TicketDesk | None:
        """Open the task's desk for tickets; None without credits."""
        if not self._options.has_credits:
            return None
        desk = TicketDesk()
        self._hold.own(desk)
        return desk

    def credits(self, readers: int, hops: int | None = None) -> Credits:
        """Bound records to readers."""
        task = self.task
        slack_ms = SLACK_MS if task.in_jvm else _PROCESS_SLACK_MS
        return Credits(readers, task.parallelism, task.index, hops, slack_ms)

    def units(self, models: Iterable[ModelSpec], desk: TicketDesk | None) -> "UnitSenders":
        """Open senders to first stages."""
        senders = UnitSenders()
        for model in models:
            readers, issue = model.stages[0].replicas, None
            if desk is not None:
                hops = sum([stage.replicas for stage in model.stages])
                credit = self.credits(readers, hops)
                issue = partial(desk.issue, desk.add(credit))
                senders.credit_of[model.name, model.version] = credit
            senders.of[model.name, model.version] = self.sender(stage_receiver(model, 0), readers, issue)
        return senders

    def receiver(self, name: str) -> Receiver:
        """Open a receiver."""
        receiver = Receiver(self._options, self.task, name, self._meter)
        self._hold.own(receiver)
        return receiver

    def close(self) -> None:
        """Release shared objects; the operator keeps its own references for late timers."""
        self._hold.release()


class UnitSenders:
    """Senders to the first stages of models, and their credits."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], Sender] = {}
        self.credit_of: dict[tuple[str, str], Credits] = {}

    def pack(self, model: ModelSpec, unit: UnitRecord) -> bytes:
        """Encode a unit."""
        return self.of[model.name, model.version].pack(unit, unit.rows)


class RuntimeOperator:
    """Base of operators; `open` sets the runtime."""

    _runtime: OperatorRuntime

    def close(self) -> None:
        """Close the runtime."""
        self._runtime.close()
