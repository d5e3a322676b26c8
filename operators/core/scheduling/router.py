"""Routes requests: to a batch of the task, to other tasks as shards, or to stages.

Requests of more than `shard_rows` rows or for an ensemble become an OPENING and SHARDs (UNITs of a staged model) of so
many rows or 100 ms. A batch for a staged model becomes OPENINGs and one UNIT.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from anabranch.operators.core.execution.padded_batch import by_length
from anabranch.operators.core.execution.stage import enter
from anabranch.operators.core.merging.ensemble import member_shards, open_window
from anabranch.operators.core.merging.request_window import window_key
from anabranch.operators.core.merging.shards import opening, shards
from anabranch.operators.core.outputs import Shard, Unit, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import (
    DEFAULT_ROWS,
    BatchCostModel,
    EnsembleCosts,
    StageWaits,
)
from anabranch.operators.core.scheduling.batch_queue import Handling
from anabranch.operators.core.scheduling.split_request import Parts, Readers, SplitRequest
from anabranch.schemas.limits import CACHED_SIGNATURES, MAX_SHARDS
from anabranch.schemas.model import Batching, Catalog, Ensemble, ModelSpec
from anabranch.schemas.records import OpeningRecord, ShardRecord, UnitRecord
from anabranch.schemas.signatures import decode_signature

_ALONE = Batching(max_rows=1)
_ALL = float("inf")
#: Longest shard, for which an urgent one and a checkpoint wait.
_SHARD_MS = 100.0
#: Target of shards.
_EXCHANGE = "exchange"


@dataclass(frozen=True, slots=True)
class _Route:
    """The route of one signature."""

    model: ModelSpec
    handling: Handling
    unsplit_rows: float


class Router:
    """The routes of one task, cached by signature.

    Args:
        costs_of: Returns the cost model of a model without stages.
        pack: Encodes a SHARD, as `pack_opening` an OPENING and `pack_unit` a UNIT.
        gate_of: Returns the readers of a model's first stage, or of the exchange.
    """

    def __init__(
        self,
        catalog: Catalog,
        costs_of: Callable[[ModelSpec], BatchCostModel],
        pack: Callable[[ShardRecord], bytes] = ShardRecord.encode,
        pack_opening: Callable[[OpeningRecord], bytes] = OpeningRecord.encode,
        pack_unit: Callable[[ModelSpec, UnitRecord], bytes] = lambda _, unit: unit.encode(),
        gate_of: Callable[[ModelSpec], Readers | None] = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._costs_of = costs_of
        self._pack = pack
        self._pack_opening = pack_opening
        self._pack_unit = pack_unit
        self._gate_of = gate_of
        self._routes: dict[bytes, _Route] = {}
        self._away_costs: dict[tuple[str, str], BatchCostModel] = {}

    def handling_of(self, signature: bytes) -> Handling:
        """Return how the queue handles requests of a signature."""
        return self._route_of(signature).handling

    def split(self, request: Request) -> SplitRequest | None:
        """Split a request into records for other tasks; None to run it in a batch."""
        route = self._route_of(request.signature)
        if request.rows <= route.unsplit_rows:
            return None
        model, ensemble = route.model, route.model.ensemble
        if ensemble is None:
            return self._split(request, model, self._shard_rows(model, request, MAX_SHARDS))
        return SplitRequest(
            route.handling.target,
            request.rows * len(ensemble.members),
            min(request.rows, model.batching.shard_rows),
            self._gate_of(self._catalog.find(*ensemble.members[0])),
            lambda now_ms: self._open(request, open_window(request, ensemble, now_ms)),
            lambda now_ms: self._spread(request, ensemble, now_ms),
        )

    def split_whole(self, request: Request) -> SplitRequest:
        """Split a request into one record, for a window that is open."""
        [[exact]] = self.packable([request])
        return self._split(exact, self._route_of(request.signature).model, request.rows)

    def _split(self, request: Request, model: ModelSpec, shard_rows: int) -> SplitRequest:
        return SplitRequest(
            self._route_of(request.signature).handling.target or _EXCHANGE,
            request.rows,
            shard_rows,
            self._gate_of(model),
            lambda _: self._open(request, opening(request)),
            lambda _: self._sent(shards(request, shard_rows), model),
        )

    def to_stages(self, batch: Sequence[Request]) -> list[WindowPart | Unit] | None:
        """Turn a batch into records for a staged model; None to run it here."""
        model = self._route_of(batch[0].signature).model
        if not model.stages:
            return None
        return [*[self._open(request, opening(request)) for request in batch], self._enter(batch, model)]

    def packable(self, batch: Sequence[Request]) -> list[list[Request]]:
        """Divide a batch into requests of one exact signature, which one record can hold."""
        padding = self._route_of(batch[0].signature).model.padding
        return [list(batch)] if padding is None else list(by_length(padding, batch))

    def _spread(self, request: Request, ensemble: Ensemble, now_ms: float) -> Parts:
        for number, (name, version) in enumerate(ensemble.members):
            model = self._catalog.find(name, version)
            rows = self._shard_rows(model, request, MAX_SHARDS // len(ensemble.members))
            yield from self._sent(member_shards(request, ensemble, now_ms, number, model, rows), model)

    def _shard_rows(self, model: ModelSpec, request: Request, max_shards: int) -> int:
        if model.is_indivisible:
            return request.rows
        fixed_rows, rows = model.fixed_rows or 1, model.batching.shard_rows
        row_elements = self._route_of(request.signature).handling.row_elements
        rows = self._cost_model_of(model).rows_within(_SHARD_MS, rows, row_elements)
        of_one = max(fixed_rows, rows - rows % fixed_rows, -(-request.rows // max(1, max_shards)))
        return of_one + -of_one % fixed_rows

    def _sent(self, parts: Iterator[ShardRecord], model: ModelSpec) -> Parts:
        gate = self._gate_of(model)
        for shard in parts:
            yield gate, partial(self._send, shard, model)

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
            is_batched = model.batchable and not model.is_indivisible
            is_away = bool(model.stages) or model.ensemble is not None
            batching = model.batching if is_batched else _ALONE
            if model.stages and model.is_capped and is_batched:
                batching = msgspec.structs.replace(batching, max_rows=None)  # The limit is in the costs.
            handling = Handling(
                batching,
                self._cost_model_of(model),
                f"{model.name}/{model.version}" if is_away else "",
                self._gate_of(model) if model.stages else None,
                decoded.row_elements,
            )
            unsplit_rows = model.batching.shard_rows if is_batched else _ALL
            route = _Route(model, handling, 0 if model.ensemble is not None else unsplit_rows)
            self._routes[signature] = route
        return route

    def _cost_model_of(self, model: ModelSpec) -> BatchCostModel:
        ensemble, name = model.ensemble, (model.name, model.version)
        if ensemble is None and not model.stages:
            return self._costs_of(model)
        costs = self._away_costs.get(name)
        if costs is None:
            if ensemble is None:
                row_ms = max(stage.row_ms for stage in model.stages)
                costs = StageWaits(row_ms, self._gate_of(model), model.batching.max_rows or DEFAULT_ROWS)
            else:
                costs = EnsembleCosts([self._cost_model_of(self._catalog.find(*each)) for each in ensemble.members])
            self._away_costs[name] = costs
        return costs
