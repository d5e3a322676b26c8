"""A router with its queue."""

from collections.abc import Callable, Sequence

from anabranch.operators.core.outputs import Output, Unit, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.batch_queue import LONG_AGO_MS, BatchQueue, Departure
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.router import Router
from anabranch.operators.core.scheduling.split_request import SplitRequest
from anabranch.schemas.model import Catalog, ModelSpec


def records_of(split: SplitRequest, now_ms: float) -> list[Output]:
    """All records of a split request."""
    records: list[Output] = []
    while not split.is_done:
        records += split.advance(now_ms)
    return records


class RoutedQueue:
    """Router and queue of a `RequestPipeline`, without admission and sessions."""

    def __init__(self, served: Catalog, costs_of: Callable[[ModelSpec], BatchCostModel]) -> None:
        self.router = Router(served, costs_of)
        self.queue = BatchQueue(self.router.handling_of, SchedulingPolicy())
        self.next_deadline, self.settle, self.forget = (
            self.queue.next_deadline,
            self.queue.settle,
            self.queue.forget,
        )

    def take_in(self, request: Request, now_ms: float) -> list[Output]:
        split = self.router.split(request)
        if split is None:
            self.queue.add(request, now_ms)
            return []
        if request.stored:
            self.queue.forget(request.number)
        return records_of(split, now_ms)

    def restore(self, number: int, request: Request) -> list[Output]:
        request.number, request.stored = number, True
        return self.take_in(request, LONG_AGO_MS)

    def next(self, now_ms: float, *, all_is_due: bool = False) -> Departure | None:
        departure = self.queue.take(now_ms, all_is_due=all_is_due)
        return departure if departure.batch or departure.expired else None

    def to_stages(self, batch: Sequence[Request]) -> list[WindowPart | Unit]:
        return self.router.to_stages(batch) or []
