"""The steps of a request in one task: admit, route, queue, run, answer.

    frame --> [ admit ] --> [ shard ] --> lane --> the most urgent batch that is due --> [ infer ] --> answers
                  |              |                                  |
                  v              |                                  +--> a task that is behind: BATCH to the exchange
              refused            +--> OPENING to the request's window, SHARDs to the exchange
                                      (for a model in stages: UNITs to its first stage)

A call admits one frame or runs one batch; `task_loop` decides which, and when. State holds queued requests as Kafka
records, and a restored request is admitted again: state does not depend on the layout of a request.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.batch_transfer import pack
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.outputs import Offload, Output
from anabranch.operators.core.requests import Refused, Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.load_balancer import LoadBalancer
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.router import Router
from anabranch.schemas.errors import AnabranchError, DeadlineExceeded, InternalError, Overloaded
from anabranch.schemas.frames import read_requests, write_requests
from anabranch.schemas.records import Failure
from anabranch.schemas.tensors import Buffer

STAGE = "shard"


class StateChanges(NamedTuple):
    """What state must learn.

    Attributes:
        arrived: Number and frame of each request that waits.
        departed: Numbers of those that wait no more.
    """

    arrived: list[tuple[int, bytes]]
    departed: list[int]


class RequestPipeline:
    """The requests of one task key.

    Args:
        offloading: Which batches leave for other tasks; None where none does.
    """

    def __init__(
        self,
        admission: Admission,
        sharding: Router,
        serving: InferenceTask,
        response_writer: ResponseWriter,
        policy: SchedulingPolicy,
        *,
        offloading: LoadBalancer | None = None,
    ) -> None:
        self._admission = admission
        self._sharding = sharding
        self._serving = serving
        self._response_writer = response_writer
        self._policy = policy
        self._offloading = offloading

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more should be read."""
        return not self._policy.refuses and self._sharding.waiting_size_bytes > self._policy.max_waiting_bytes

    def on_frame(self, frame: Buffer, now_ms: float) -> list[Output]:
        """Takes requests in, and returns what leaves without waiting; never raises for a request.

        Args:
            frame: Of Kafka records; see `anabranch.schemas.frames`.
            now_ms: Unix time.
        """
        outputs: list[Output] = []
        admit, take_in = self._admission.admit, self._sharding.take_in
        requests = read_requests(frame)
        for message, source in requests:
            request = admit(message, source, now_ms)
            if isinstance(request, Refused):
                outputs += self._response_writer.refuse(request)
                continue
            if request.breakdown is not None:
                request.breakdown.admitted_ms = self._response_writer.now_ms()
            try:
                outputs += take_in(request, now_ms)
            except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
                outputs += self._response_writer.fail(request, _defect(error))
        if requests:
            self._response_writer.meter.note_admission(len(requests), self._response_writer.now_ms() - now_ms)
        if self._policy.refuses:
            for request in self._sharding.shed(self._policy.max_backlog_ms, self._policy.max_waiting_bytes):
                outputs += self._response_writer.fail(
                    request, _failure(Overloaded, "more urgent requests fill the task")
                )
        return outputs

    def next(self, now_ms: float, *, all_is_due: bool = False) -> list[Output] | None:
        """Works on the most urgent batch that is due, and answers what has expired; None if there is neither.

        Where the task is behind, it may be an `Offload` instead: the least urgent batch.

        Args:
            now_ms: Unix time.
            all_is_due: Whether delays do not count: the input has ended, and nothing leaves.
        """
        offloading = None if all_is_due else self._offloading
        backlog_ms = self._sharding.backlog_ms
        if offloading is not None and offloading.is_due(backlog_ms, now_ms):
            given = self._sharding.take_last(lambda unit: offloading.is_worth(unit, backlog_ms, now_ms))
            offloading.note_given(given, now_ms)
            if given:
                return [Offload(pack(given).encode())]
        departure = self._sharding.next(now_ms, all_is_due=all_is_due)
        if departure is None:
            return None
        outputs: list[Output] = []
        for request in departure.expired:
            outputs += self._response_writer.fail(request, _late(request, now_ms))
        if departure.unit:
            if offloading is not None:
                offloading.note_run()
            outputs += self._enter(departure.unit) or self._serving.on_batch(departure.unit, now_ms)
        return outputs

    def note_wait(self, waited_ms: float, now_ms: float) -> None:
        """Learns how long the exchange kept the task that gave it a batch."""
        if self._offloading is not None:
            self._offloading.note_wait(waited_ms, now_ms)

    def _enter(self, unit: Sequence[Request]) -> Sequence[Output] | None:
        try:
            return self._sharding.enter(unit)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not kill the job
            return [output for request in unit for output in self._response_writer.fail(request, _defect(error))]

    def next_deadline(self) -> float | None:
        """When `next` has something to give: 0 for at once, else Unix milliseconds; None while nothing waits."""
        return self._sharding.next_deadline()

    def settle(self) -> StateChanges:
        """What state must learn, now that the task turns to something else."""
        changes = self._sharding.settle()
        return StateChanges(
            [(request.number, write_requests([(request.original, request.source)])) for request in changes.arrived],
            changes.departed,
        )

    def restore(self, held: Iterable[tuple[int, bytes]], now_ms: float) -> list[Output]:
        """Puts requests back that state held, with their numbers, and returns what leaves without waiting."""
        outputs: list[Output] = []
        for number, frame in sorted(held):
            for message, source in read_requests(frame):
                request = self._admission.admit(message, source, now_ms)
                if isinstance(request, Refused):  # its time is up, or an upgrade took its model
                    self._sharding.forget(number)
                    outputs += self._response_writer.refuse(request)
                else:
                    if request.breakdown is not None:
                        request.breakdown.admitted_ms = self._response_writer.now_ms()
                    try:
                        outputs += self._sharding.restore(number, request)
                    except Exception as error:  # noqa: BLE001 - it would kill the job again after each restart
                        self._sharding.forget(number)
                        outputs += self._response_writer.fail(request, _defect(error))
        return outputs


def _late(request: Request, now_ms: float) -> Failure:
    left_ms = request.deadline_ms - now_ms
    if left_ms <= 0:
        return _failure(DeadlineExceeded, "the deadline passed while the request waited for its batch")
    return _failure(
        DeadlineExceeded, f"the model needs more than the {left_ms:.1f} ms that are left until the deadline"
    )


def _defect(error: Exception) -> Failure:
    return _failure(InternalError, f"{type(error).__name__}: {error}")


def _failure(error: type[AnabranchError], message: str) -> Failure:
    return Failure(error.code, message, STAGE)
