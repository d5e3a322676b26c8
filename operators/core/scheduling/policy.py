"""Parameters of the scheduler: the `[scheduling]` section of the configuration."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from anabranch.schemas.limits import MAX_WAIT_MS

_WaitMs: TypeAlias = Annotated[float, Meta(ge=0, le=MAX_WAIT_MS)]


class SchedulingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Order, waiting and overload.

    Attributes:
        default_priority: Priority of requests without one; 1 is most urgent.
        window_timeout_ms: Longest wait of a split request without deadline.
        remember_ms: Longest memory of split requests that were answered before all parts came.
        work_slice_ms: Time for batches before a task reads requests.
        overload: `wait` leaves requests in Kafka; `refuse` answers the least urgent with `overloaded`.
        max_waiting_bytes: Queued bytes from which a task stops reading, or refuses.
        max_backlog_ms: Queued work from which a task refuses.
        slow_batch_ms: Batches that take longer run beside the task, one at a time, while it serves quick ones.
        balance: `offload` hands batches to less busy tasks.
        offload_backlog_ms: Queued work from which a task offloads.
        priority_step_ms: Queue delay per step of lower priority.
        no_deadline_ms: Deadline by which the queue orders requests without one.
    """

    default_priority: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 5
    window_timeout_ms: Annotated[int, Meta(ge=1, le=MAX_WAIT_MS)] = 300_000
    remember_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)] = 600_000
    work_slice_ms: _WaitMs = 10.0
    overload: Literal["wait", "refuse"] = "wait"
    max_waiting_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    max_backlog_ms: _WaitMs = 2_000.0
    slow_batch_ms: _WaitMs = 50.0
    balance: Literal["offload", "off"] = "offload"
    offload_backlog_ms: _WaitMs = 100.0
    priority_step_ms: _WaitMs = 5_000.0
    no_deadline_ms: _WaitMs = 10_000.0

    @property
    def refuses(self) -> bool:
        """True if a task refuses requests under overload."""
        return self.overload == "refuse"

    @property
    def offloads(self) -> bool:
        """True if late tasks hand batches to others."""
        return self.balance == "offload"

    def urgency(self, arrived_ms: float, deadline_ms: int, priority: int) -> float:
        """Return the time at which a request should leave the queue.

        That is its deadline, at most `no_deadline_ms` after arrival, plus `priority_step_ms` per step of priority.
        """
        leaves_ms = arrived_ms + self.no_deadline_ms
        if deadline_ms and deadline_ms < leaves_ms:
            leaves_ms = deadline_ms
        return leaves_ms + priority * self.priority_step_ms
