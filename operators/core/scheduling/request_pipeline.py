"""The steps of a request in one task: admit, route, queue, run, answer.

`task_loop` selects the step and passes the queue. State holds Kafka records: restored requests are admitted again.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.batch_transfer import pack
from anabranch.operators.core.execution.inference_task import InferenceTask, RanApart
from anabranch.operators.core.execution.window_parts import failure_of, failure_parts
from anabranch.operators.core.outputs import Offload, Output
from anabranch.operators.core.requests import Refused, Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_queue import LONG_AGO_MS, LOOK_AGAIN_MS, BatchQueue, begun_key
from anabranch.operators.core.scheduling.load_balancer import LaneBalancers, LoadBalancer
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.split_request import SplitRequest
from anabranch.schemas.errors import AnabranchError, DeadlineExceeded, InternalError, Overloaded
from anabranch.schemas.frames import read_begun, read_requests, read_waiting
from anabranch.schemas.records import BatchRecord, Segment
from anabranch.schemas.signatures import Failure
from anabranch.schemas.tensors import Buffer

PHASE = "shard"
#: Longest wait for a slow batch without a look at the queue.
_WAIT_MS = 10.0
#: Fewer requests of a frame are queued one by one.
_FEW = 4


class SlowLane(Protocol):
    """Runs slow batches beside a task's thread, one at a time."""

    @property
    def has_room(self) -> bool:
        """True if a batch may start."""

    def start(self, run: Callable[[], RanApart]) -> None:
        """Start a batch."""

    def take(self) -> RanApart | None:
        """Return a batch that has ended."""

    def wait(self, timeout_ms: float) -> None:
        """Wait for the end of a batch."""


class RequestPipeline:
    """The steps of one task, for any of its queues."""

    def __init__(
        self,
        admission: Admission,
        router: Router,
        inference: InferenceTask,
        response_writer: ResponseWriter,
        policy: SchedulingPolicy,
        lane: SlowLane | None = None,
        pack_batch: Callable[[BatchRecord], bytes] = BatchRecord.encode,
        look_again_ms: float = LOOK_AGAIN_MS,
    ) -> None:
        self._admission = admission
        self._router = router
        self._inference = inference
        self._response_writer = response_writer
        self._policy = policy
        self._lane = lane
        self._pack_batch = pack_batch
        self._look_again_ms = look_again_ms

    def new_queue(self) -> BatchQueue:
        """Create an empty queue."""
        return BatchQueue(self._router.handling_of, self._policy, self._lane, self._look_again_ms)

    def await_slow(self, queue: BatchQueue) -> bool:
        """Wait a moment for a slow batch; return False if the queue awaits none."""
        if self._lane is None or not queue.awaits_lane:
            return False
        self._lane.wait(_WAIT_MS)
        return True

    def admit(self, frame: Buffer, queue: BatchQueue, now_ms: float) -> list[Output]:
        """Queue the requests of a frame; return refusals."""
        outputs: list[Output] = []
        split = self._router.split
        requests = read_requests(frame)
        admitted = self._admission.admit_all(requests, now_ms)
        if self._add_alike(admitted, queue, now_ms):
            admitted = ()
        for request in admitted:
            if isinstance(request, Refused):
                if request.failure.code == DeadlineExceeded.code:
                    self._response_writer.meter.note_behind(now_ms - request.source.timestamp_ms)
                outputs += self._response_writer.refuse(request)
                continue
            if request.breakdown is not None:
                request.breakdown.admitted_ms = self._response_writer.now_ms()
            try:
                queue.add(request, now_ms, split(request))
            except Exception as error:  # noqa: BLE001 - a defect must not kill the job
                outputs += self._fail([request], error)
        if requests:
            self._response_writer.meter.note_admission(len(requests), self._response_writer.now_ms() - now_ms)
        if self._policy.refuses:
            outputs += self._shed(queue)
        return outputs

    def _add_alike(self, admitted: Sequence[Request | Refused], queue: BatchQueue, now_ms: float) -> bool:
        """Queue the requests of a frame at once if they are alike; return False otherwise."""
        if len(admitted) < _FEW:
            return False
        first = admitted[0]
        if type(first) is not Request or self._router.split(first) is not None:
            return False
        signature, priority, rows = first.signature, first.priority, first.rows
        requests: list[Request] = []
        for each in admitted:
            # The signature of a head is one object.
            if (
                type(each) is not Request
                or each.signature is not signature
                or each.priority != priority
                or each.rows != rows
                or each.deadline_ms
                or each.holds_order
                or each.breakdown is not None
            ):
                return False
            requests.append(each)
        try:
            queue.add(first, now_ms)
        except Exception:  # noqa: BLE001 - one by one, the request at fault is found
            return False
        queue.add_like(first, requests[1:], now_ms)
        return True

    def _shed(self, queue: BatchQueue) -> list[Output]:
        outputs: list[Output] = []
        for request in queue.shed():
            failure = _failure(Overloaded, "more urgent requests fill the task: send the request again later")
            outputs += self._response_writer.fail(request, failure)
        return outputs

    def restore(self, held: Iterable[tuple[int, bytes]], queue: BatchQueue, now_ms: float) -> list[Output]:
        """Queue requests from state, given number and frame; return refusals."""
        outputs: list[Output] = []
        begun: dict[int, bytes] = {}
        for number, frame in sorted(held):  # Marks have negative numbers.
            if number < 0:
                begun[begun_key(number)] = frame
                continue
            mark = begun.get(number)
            try:
                message, source = read_waiting(frame)
            except Exception as error:  # noqa: BLE001 - it would fail each restart
                self._response_writer.defects.note("queue", error, f"undecodable queued request {number}")
                queue.forget(number, is_marked=mark is not None)
                continue
            request = self._admission.admit(message, source, now_ms)
            if isinstance(request, Refused):  # Expired, or an upgrade removed the model.
                queue.forget(number, is_marked=mark is not None)
                outputs += self._refuse(request, mark)
                continue
            if request.breakdown is not None:
                request.breakdown.admitted_ms = self._response_writer.now_ms()
            request.number, request.stored = number, True
            try:
                split = self._router.split(request)
                if mark is not None:
                    # An upgrade may have raised `shard_rows`; the window is open.
                    split = split or self._router.split_whole(request)
                    split.has_begun = split.is_marked = True
                queue.add(request, LONG_AGO_MS, split)
            except Exception as error:  # noqa: BLE001 - it would fail each restart
                outputs += self._fail([request], error)
                queue.forget(number, is_marked=mark is not None)
        return outputs

    def _refuse(self, refused: Refused, mark: bytes | None) -> Sequence[Output]:
        """Refuse a restored request; its window answers if it is open."""
        if mark is None:
            return self._response_writer.refuse(refused)
        if refused.failure.code == DeadlineExceeded.code:
            return []
        return failure_parts([Segment(refused.source, refused.id, rows=read_begun(mark))], refused.failure)

    def run_next(
        self, queue: BatchQueue, now_ms: float, balancers: LaneBalancers | None = None, *, all_is_due: bool = False
    ) -> list[Output] | None:
        """Run the most urgent due batch and answer expired requests; None without either.

        A slow batch starts beside the task, and is answered by a later call. The result may also be an `Offload`: the
        least urgent batch of a late task.

        Args:
            balancers: Select batches for other tasks.
            all_is_due: True to ignore delays, and to run slow batches here.
        """
        lane = self._lane
        if queue.running and lane is not None and (ran := lane.take()) is not None:
            return [*self._inference.on_ran(queue.end_slow(), ran)]
        if queue.follow_costs() and self._policy.refuses and not all_is_due and (refused := self._shed(queue)):
            return refused
        if balancers is not None and queue.backlog_ms > balancers.least_backlog_ms:
            offloaded = self._offload(queue, balancers, now_ms)
            if offloaded:
                return offloaded
        departure = queue.take(now_ms, all_is_due=all_is_due)
        batch = departure.batch
        outputs: list[Output] = []
        for request in departure.expired:
            outputs += self._response_writer.fail(request, _late(request, now_ms))
        if batch:
            if batch[0].split is not None:
                return outputs + self._advance(queue, batch[0], batch[0].split, now_ms)
            if balancers is not None:
                balancers.of(is_slow=departure.is_slow).note_run()
            if departure.is_slow and lane is not None:
                lane.start(partial(self._inference.run_apart, batch, now_ms))
            else:
                outputs += self._run(batch, now_ms)
        elif not departure.expired:
            return None
        return outputs

    def _offload(self, queue: BatchQueue, balancers: LaneBalancers, now_ms: float) -> list[Output]:
        slow_ms = queue.slow_backlog_ms()
        for is_slow, backlog_ms in ((True, slow_ms), (False, queue.backlog_ms - slow_ms)):
            balancer = balancers.of(is_slow=is_slow)
            if balancer.is_due(backlog_ms, now_ms):
                given = queue.take_last(partial(_is_worth, balancer, backlog_ms, now_ms), is_slow=is_slow)
                balancers.note_given(given, now_ms, is_slow=is_slow)
                if given:
                    return [Offload(self._pack_batch(pack(part))) for part in self._router.packable(given)]
        return []

    def _advance(self, queue: BatchQueue, request: Request, split: SplitRequest, now_ms: float) -> list[Output]:
        try:
            outputs = split.advance(now_ms)
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            queue.drop_split(request)
            if not split.has_begun:
                return self._fail([request], error)
            self._response_writer.defects.note("queue", error, f"request {request.id!r}")
            return [*failure_parts([Segment(request.source, request.id, rows=split.rows)], failure_of(error, PHASE))]
        queue.settle_split(request)
        return outputs

    def _run(self, batch: list[Request], now_ms: float) -> Sequence[Output]:
        try:
            records = self._router.to_stages(batch)
        except Exception as error:  # noqa: BLE001 - a defect must not kill the job
            return self._fail(batch, error)
        return self._inference.on_batch(batch, now_ms) if records is None else records

    def _fail(self, requests: Sequence[Request], error: Exception) -> list[Output]:
        self._response_writer.defects.note("queue", error, f"request {requests[0].id!r}")
        failure = _failure(InternalError, f"{type(error).__name__}: {error}")
        return [output for request in requests for output in self._response_writer.fail(request, failure)]


def _is_worth(balancer: LoadBalancer, backlog_ms: float, now_ms: float, batch: Sequence[Request]) -> bool:
    return balancer.is_worth(batch, backlog_ms, now_ms) and not any(request.holds_order for request in batch)


def _late(request: Request, now_ms: float) -> Failure:
    left_ms = request.deadline_ms - now_ms
    if left_ms <= 0:
        return _failure(DeadlineExceeded, "the deadline passed while the request was queued: raise its timeout")
    return _failure(
        DeadlineExceeded,
        f"the deadline is in {left_ms:.1f} ms, but the model needs longer: raise the request's timeout",
    )


def _failure(error: type[AnabranchError], message: str) -> Failure:
    return Failure(error.code, message, PHASE)
