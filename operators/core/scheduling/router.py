"""Turns the requests of one task into units of work: splits the big, lets the small share a batch.

A request of more rows than `shard_rows` leaves at once, as an OPENING for its window and one SHARD after the other for
the exchange; so does every request for an ensemble. The rest goes through the task's `BatchQueue`. What is for a model
in stages leaves for its first stage, with an OPENING for every request: whole where it is small, in company where
others wait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from anabranch.operators.core.execution.stage import enter
from anabranch.operators.core.merging.ensemble import member_shards, open_window
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.merging.shards import opening, shards
from anabranch.operators.core.outputs import Shard, Unit, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import DEFAULT_ROWS, BatchCostModel
from anabranch.operators.core.scheduling.batch_queue import LONG_AGO_MS, BatchQueue, Departure
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.limits import CACHED_SIGNATURES, MAX_SHARDS
from anabranch.schemas.model import Batching, Catalog, Ensemble, ModelSpec
from anabranch.schemas.records import Record, decode_signature

#: What a batch may take in the slowest of a model's stages, where it is of more than one row.
_STAGE_MS = 10.0
#: Of a model that has no batch axis.
_ALONE = Batching(max_rows=1)
_ALL = float("inf")


@dataclass(frozen=True, slots=True)
class _Policy:
    """What is done with the requests of one signature.

    Attributes:
        costs: What the batches of its model cost.
        unsplit_rows: The rows of the largest request that is not split.
    """

    model: ModelSpec
    batching: Batching
    costs: BatchCostModel
    unsplit_rows: float


@dataclass(frozen=True, slots=True)
class QueueChanges:
    """What became of the waiting requests since state last heard of them.

    Attributes:
        arrived: What came and still waits.
        departed: Numbers of those that waited before and have left.
    """

    arrived: list[Request]
    departed: list[int]


class Router:
    """The requests of one task, or of one lane that a failure left behind.

    Args:
        costs_of: What the batches of a model cost; it is not asked of models in stages.
        pack: What makes a shard ready for its way to another task.
        pack_opening: The same for what opens a window.
        pack_unit: The same for a unit on its way to the first stage of a model.
    """

    def __init__(
        self,
        catalog: Catalog,
        costs_of: Callable[[ModelSpec], BatchCostModel],
        policy: SchedulingPolicy,
        pack: Callable[[Record], bytes] = Record.encode,
        pack_opening: Callable[[Record], bytes] = Record.encode,
        pack_unit: Callable[[ModelSpec, Record], bytes] = lambda _, unit: unit.encode(),
    ) -> None:
        self._catalog = catalog
        self._costs_of = costs_of
        self._pack = pack
        self._pack_opening = pack_opening
        self._pack_unit = pack_unit
        self._lane = BatchQueue(self._batching_of, policy)
        self._policies: dict[bytes, _Policy] = {}
        self._arrived: list[Request] = []
        self._departed: list[int] = []

    @property
    def backlog_ms(self) -> float:
        """How long the task will work for what waits."""
        return self._lane.backlog_ms

    @property
    def waiting_size_bytes(self) -> int:
        """How much waits."""
        return self._lane.size_bytes

    def take_in(self, request: Request, now_ms: float) -> list[WindowPart | Shard | Unit]:
        """Takes a request in, and returns what leaves without waiting."""
        policy = self._policy_of(request.signature)
        if request.rows > policy.unsplit_rows:
            if request.stored:  # it was small enough before an upgrade
                self._departed.append(request.number)
            return self._split(request, policy.model)
        self._lane.add(request, now_ms)
        if not request.stored:
            self._arrived.append(request)
        return []

    def restore(self, number: int, request: Request) -> list[WindowPart | Shard | Unit]:
        """Takes in, in order of their numbers, what state held; all of it is due at once."""
        request.number, request.stored = number, True
        return self.take_in(request, LONG_AGO_MS)

    def forget(self, number: int) -> None:
        """Notes that what state held is no request any more."""
        self._lane.number_after(number)
        self._departed.append(number)

    def next(self, now_ms: float, *, all_is_due: bool = False) -> Departure | None:
        """The most urgent unit that is due, and what has expired; None if there is neither.

        Args:
            now_ms: Unix time.
            all_is_due: Whether delays do not count: the input has ended.
        """
        departure = self._lane.take(now_ms, all_is_due=all_is_due)
        if not departure.unit and not departure.expired:
            return None
        self._departed += [request.number for request in departure.unit if request.stored]
        self._departed += [request.number for request in departure.expired if request.stored]
        return departure

    def enter(self, unit: Sequence[Request]) -> list[WindowPart | Unit] | None:
        """What leaves for a model in stages; None where these are for a model that runs here."""
        model = self._policy_of(unit[0].signature).model
        if not model.stages:
            return None
        return [*[self._open(request, opening(request)) for request in unit], self._enter(unit, model)]

    def take_last(self, is_wanted: Callable[[Sequence[Request]], bool]) -> list[Request]:
        """The least urgent unit that is due and wanted; empty where there is none."""
        unit = self._lane.take_last(is_wanted)
        self._departed += [request.number for request in unit if request.stored]
        return unit

    def shed(self, max_backlog_ms: float, max_size_bytes: int) -> list[Request]:
        """The least urgent requests, where more waits than that: to be refused."""
        shed = self._lane.shed(max_backlog_ms, max_size_bytes)
        self._departed += [request.number for request in shed if request.stored]
        return shed

    def next_deadline(self) -> float | None:
        """When `next` has something to give: 0 for at once, else Unix milliseconds; None while nothing waits."""
        return self._lane.next_deadline()

    def settle(self) -> QueueChanges:
        """What state must learn, now that the task turns to something else."""
        changes = QueueChanges([request for request in self._arrived if not request.gone], self._departed)
        for request in changes.arrived:
            request.stored = True
        self._arrived, self._departed = [], []
        return changes

    def _split(self, request: Request, model: ModelSpec) -> list[WindowPart | Shard | Unit]:
        if model.ensemble is not None:
            return self._spread(request, model.ensemble)
        rows = _shard_rows(model, request.rows, MAX_SHARDS)
        return [
            self._open(request, opening(request)),
            *[self._leave(shard, model) for shard in shards(request, rows)],
        ]

    def _spread(self, request: Request, ensemble: Ensemble) -> list[WindowPart | Shard | Unit]:
        outputs: list[WindowPart | Shard | Unit] = [self._open(request, open_window(request, ensemble))]
        for number, (name, version) in enumerate(ensemble.members):
            model = self._catalog.find(name, version)
            rows = _shard_rows(model, request.rows, MAX_SHARDS // len(ensemble.members))
            outputs += [self._leave(shard, model) for shard in member_shards(request, ensemble, number, model, rows)]
        return outputs

    def _open(self, request: Request, window: Record) -> WindowPart:
        return WindowPart(window_key(request.source), self._pack_opening(window))

    def _leave(self, shard: Record, model: ModelSpec) -> Shard | Unit:
        return self._enter([shard], model) if model.stages else Shard(self._pack(shard))

    def _enter(self, parts: Sequence[Request | Record], model: ModelSpec) -> Unit:
        return Unit((model.name, model.version), self._pack_unit(model, enter(parts, model)))

    def _batching_of(self, signature: bytes) -> tuple[Batching, BatchCostModel]:
        policy = self._policy_of(signature)
        return policy.batching, policy.costs

    def _policy_of(self, signature: bytes) -> _Policy:
        policy = self._policies.get(signature)
        if policy is None:
            if len(self._policies) >= CACHED_SIGNATURES:  # dynamic shapes make endlessly many signatures
                self._policies.clear()
            decoded = decode_signature(signature)
            model = self._catalog.find(decoded.model_name, decoded.model_version)
            costs = BatchCostModel() if model.stages or model.ensemble is not None else self._costs_of(model)
            if model.ensemble is not None:
                policy = _Policy(model, _ALONE, costs, 0)
            elif model.batchable:
                policy = _Policy(model, _batching(model), costs, model.batching.shard_rows)
            else:
                policy = _Policy(model, _ALONE, costs, _ALL)
            self._policies[signature] = policy
        return policy


def _batching(model: ModelSpec) -> Batching:
    # The lane does not know what a batch takes in the stages. A large one would leave each of them idle while it is in
    # another; a small one, of a quick model, would cost more than it takes.
    row_ms = max((stage.row_ms for stage in model.stages), default=0.0)
    if not row_ms or model.batching.max_rows is not None:
        return model.batching
    return msgspec.structs.replace(model.batching, max_rows=min(DEFAULT_ROWS, max(1, int(_STAGE_MS / row_ms))))


def _shard_rows(model: ModelSpec, rows: int, most: int) -> int:
    """Rows of the shards of a request: so many that there are `most` shards at most."""
    # A shard of a model with a fixed batch size holds whole batches.
    fixed_rows, shard_rows = model.fixed_rows or 1, model.batching.shard_rows
    of_one = max(fixed_rows, shard_rows - shard_rows % fixed_rows, -(-rows // max(1, most)))
    return of_one + -of_one % fixed_rows
