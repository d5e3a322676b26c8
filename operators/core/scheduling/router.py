"""Routes requests to the queue of the task, to other tasks as shards, or to stages.

Requests of more than `shard_rows` rows or for an ensemble become an OPENING and SHARDs (UNITs of a staged model). A
batch for a staged model becomes OPENINGs and one UNIT.
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
from anabranch.schemas.limits import CACHED_SIGNATURES, MAX_SHARDS
from anabranch.schemas.model import Batching, Catalog, Ensemble, ModelSpec
from anabranch.schemas.records import OpeningRecord, ShardRecord, UnitRecord
from anabranch.schemas.signatures import decode_signature

#: Longest batch in the slowest stage.
_STAGE_MS = 10.0
_ALONE = Batching(max_rows=1)
_ALL = float("inf")


@dataclass(frozen=True, slots=True)
class _Route:
    """The route of one signature."""

    model: ModelSpec
    batching: Batching
    costs: BatchCostModel
    unsplit_rows: float


class Router:
    """The routes of one task, cached by signature.

    Args:
        costs_of: Returns the cost model of a model without stages.
        pack: Encodes a SHARD, as `pack_opening` an OPENING and `pack_unit` a UNIT.
    """

    def __init__(
        self,
        catalog: Catalog,
        costs_of: Callable[[ModelSpec], BatchCostModel],
        pack: Callable[[ShardRecord], bytes] = ShardRecord.encode,
        pack_opening: Callable[[OpeningRecord], bytes] = OpeningRecord.encode,
        pack_unit: Callable[[ModelSpec, UnitRecord], bytes] = lambda _, unit: unit.encode(),
    ) -> None:
        self._catalog = catalog
        self._costs_of = costs_of
        self._pack = pack
        self._pack_opening = pack_opening
        self._pack_unit = pack_unit
        self._routes: dict[bytes, _Route] = {}

    def batching_of(self, signature: bytes) -> tuple[Batching, BatchCostModel]:
        """Return batching and cost model of a signature."""
        route = self._route_of(signature)
        return route.batching, route.costs

    def split(self, request: Request) -> list[WindowPart | Shard | Unit] | None:
        """Split a request into records for other tasks; None to queue it."""
        route = self._route_of(request.signature)
        if request.rows <= route.unsplit_rows:
            return None
        if route.model.ensemble is not None:
            return self._spread(request, route.model.ensemble)
        rows = _shard_rows(route.model, request.rows, MAX_SHARDS)
        return [
            self._open(request, opening(request)),
            *[self._send(shard, route.model) for shard in shards(request, rows)],
        ]

    def to_stages(self, batch: Sequence[Request]) -> list[WindowPart | Unit] | None:
        """Turn a batch into records for a staged model; None to run it here."""
        model = self._route_of(batch[0].signature).model
        if not model.stages:
            return None
        return [*[self._open(request, opening(request)) for request in batch], self._enter(batch, model)]

    def _spread(self, request: Request, ensemble: Ensemble) -> list[WindowPart | Shard | Unit]:
        outputs: list[WindowPart | Shard | Unit] = [self._open(request, open_window(request, ensemble))]
        for number, (name, version) in enumerate(ensemble.members):
            model = self._catalog.find(name, version)
            rows = _shard_rows(model, request.rows, MAX_SHARDS // len(ensemble.members))
            outputs += [self._send(shard, model) for shard in member_shards(request, ensemble, number, model, rows)]
        return outputs

    def _open(self, request: Request, window: OpeningRecord) -> WindowPart:
        return WindowPart(window_key(request.source), self._pack_opening(window))

    def _send(self, shard: ShardRecord, model: ModelSpec) -> Shard | Unit:
        return self._enter([shard], model) if model.stages else Shard(self._pack(shard))

    def _enter(self, parts: Sequence[Request] | Sequence[ShardRecord], model: ModelSpec) -> Unit:
        return Unit((model.name, model.version), self._pack_unit(model, enter(parts, model)))

    def _route_of(self, signature: bytes) -> _Route:
        route = self._routes.get(signature)
        if route is None:
            if len(self._routes) >= CACHED_SIGNATURES:
                self._routes.clear()
            decoded = decode_signature(signature)
            model = self._catalog.find(decoded.model_name, decoded.model_version)
            costs = BatchCostModel() if model.stages or model.ensemble is not None else self._costs_of(model)
            if model.ensemble is not None:
                route = _Route(model, _ALONE, costs, 0)
            elif model.batchable and not model.is_indivisible:
                route = _Route(model, _batching(model), costs, model.batching.shard_rows)
            else:
                route = _Route(model, _ALONE, costs, _ALL)
            self._routes[signature] = route
        return route


def _batching(model: ModelSpec) -> Batching:
    # A large batch occupies one stage at a time.
    row_ms = max((stage.row_ms for stage in model.stages), default=0.0)
    if not row_ms or model.batching.max_rows is not None:
        return model.batching
    return msgspec.structs.replace(model.batching, max_rows=min(DEFAULT_ROWS, max(1, int(_STAGE_MS / row_ms))))


def _shard_rows(model: ModelSpec, rows: int, max_shards: int) -> int:
    if model.is_indivisible:
        return rows
    fixed_rows, shard_rows = model.fixed_rows or 1, model.batching.shard_rows
    of_one = max(fixed_rows, shard_rows - shard_rows % fixed_rows, -(-rows // max(1, max_shards)))
    return of_one + -of_one % fixed_rows
