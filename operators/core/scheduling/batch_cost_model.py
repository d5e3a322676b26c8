"""Predicts the time of batches: measurements at load, corrected by later runs, or the runs alone."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from anabranch.operators.core.scheduling.learned_cost import LearnedCost
from anabranch.operators.core.scheduling.split_request import Readers
from anabranch.schemas.limits import CACHED_SIGNATURES

#: Relative cost of a preferred smaller batch.
_TOLERANCE = 1.05
#: Longest batch in the slowest stage: profiled, or learned with all that a run costs; and first ones.
_STAGE_MS, _LEARNED_STAGE_MS, _FIRST_ROWS = 10.0, 25.0, 8
#: Relative cost of the rows of a smaller shard.
_WASTE = 1.1
#: Overhead of a batch in Python and Flink.
_CALL_MS = 0.1
#: Default limit of rows, and largest measured size.
DEFAULT_ROWS, MOST_ROWS = 64, 1024
#: Longest batch beyond the default limit.
MOST_MS = 1.0
#: Runs that `at_least_ms` considers.
_RUNS = 256
#: Quick runs; one in so many is observed.
_SAMPLED_MS, _SAMPLED = 1.0, 4
#: Runs that a model without measurements needs for `at_least_ms`.
_ENOUGH_RUNS = 16
#: Longest batch of a model without measurements, unless most of it is the call.
_LONG_MS, _LEAST_CALLS = 100.0, 20.0
#: Weight of earlier runs, and greatest change, of expected times.
_AVERAGED, _MOST_CHANGE = 4, 8.0
#: Change of the ratio that counts as another price: relative to it, and at least.
_MOVE, _LEAST_MOVE = 0.1, 0.01


class Measurement(msgspec.Struct, frozen=True, array_like=True):
    """Least time of a few runs."""

    rows: int
    run_ms: float


class Quote(NamedTuple):
    """Prices of the batches of one signature.

    Attributes:
        revision: Of the cost model.
        unit_ms: Factor of both costs.
        call_cost: Work that the rows of a batch share; `row_cost` that of each.
        most_ms: Longest expected time of a full batch.
    """

    revision: int
    unit_ms: float
    max_rows: int
    call_cost: float
    row_cost: float
    most_ms: float


class BatchCostModel:
    """Cost of the batches of one model on one machine.

    Args:
        measured: Sorted by rows; without it, costs are learned from runs.
        run_rows: Rows of each run of a model with a batch size of its own.
    """

    def __init__(self, measured: Sequence[Measurement] = (), run_rows: int | None = None) -> None:
        self._rows = [each.rows for each in measured]
        self._run_ms = [each.run_ms for each in measured]
        self._run_rows = run_rows
        self._learned = None if measured else LearnedCost()
        #: Observed / expected time: average, last values, their minimum.
        self._ratio = 1.0
        self._ratios: list[float] = []
        self._least_ratio = 0.0
        self._runs = self._skipped = 0
        self._priced_ratio = 1.0
        self._revision = 0
        self._best: dict[int | None, int] = {}
        self._quotes: dict[tuple[int | None, int], Quote] = {}

    @property
    def revision(self) -> int:
        """Number of changes of the predictions that matter."""
        return self._revision

    @property
    def learns_sizes(self) -> bool:
        """True if `observe` needs the elements of a row."""
        return self._learned is not None

    def quote(self, max_rows: int | None, row_elements: int) -> Quote:
        """Return the prices of batches, until the revision changes."""
        key = max_rows, row_elements
        quote = self._quotes.get(key)
        if quote is None or quote.revision != self.revision:
            if len(self._quotes) >= CACHED_SIGNATURES:
                self._quotes = {}
            revision, best = self.revision, self.best_rows(max_rows, row_elements)
            if self._learned is None:
                unit_ms, call_cost, row_cost = self._ratio, 0.0, self._measured_ms(best) / best
            else:
                unit_ms, (call_cost, row_cost) = 1.0, self.price(best, row_elements)
            most_ms = self.expect_ms(best, row_elements) * (_MOST_CHANGE if self.learns_sizes else 1.0)
            quote = Quote(revision, unit_ms, best, call_cost, row_cost, most_ms)
            self._quotes[key] = quote
        return quote

    def best_rows(self, max_rows: int | None, row_elements: int = 1) -> int:
        """Find the batch size of least cost per row, up to a limit.

        Args:
            max_rows: None for `DEFAULT_ROWS`, or more if quick.
        """
        if self._learned is not None:
            limit = max_rows or DEFAULT_ROWS
            call_ms, row_ms = self.price(limit, row_elements)
            return min(limit, max(1, int(max(_LONG_MS, _LEAST_CALLS * call_ms) / row_ms))) if row_ms else limit
        best = self._best.get(max_rows)
        if best is None:
            best = self._best[max_rows] = self._find_best(max_rows)
        return best

    def price(self, max_rows: int, row_elements: int = 1) -> tuple[float, float]:
        """Return the time of a batch that does not depend on its rows, and that of each row."""
        learned = self._learned
        if learned is None:
            return 0.0, self.predict_ms(max_rows) / max_rows
        run_rows = self._run_rows
        if run_rows:
            return 0.0, learned.predict_ms(run_rows, row_elements) / run_rows
        return learned.price(max_rows, row_elements)

    def _find_best(self, max_rows: int | None) -> int:
        limit = max_rows or DEFAULT_ROWS
        measured = zip(self._rows, self._run_ms, strict=True)
        known = [
            (rows, (run_ms + _CALL_MS) / rows)
            for rows, run_ms in measured
            if rows <= limit or (not max_rows and run_ms <= MOST_MS)
        ]
        if not known:
            return limit
        least = min(per_row for _, per_row in known)
        best = next(rows for rows, per_row in known if per_row <= least * _TOLERANCE)
        return max(limit, best) if best == self._rows[-1] else best

    def predict_ms(self, rows: int, row_elements: int = 1) -> float:
        """Predict the time of a batch; 0 without measurements and runs."""
        cost = self.cost(rows, row_elements)
        return cost * self._ratio if self._learned is None else cost

    def cost(self, rows: int, row_elements: int = 1) -> float:
        """Predict the work of a batch, in units of the quotes' `unit_ms`."""
        learned = self._learned
        if learned is None:
            return self._measured_ms(rows)
        run_rows = self._run_rows
        if run_rows:
            return -(-rows // run_rows) * learned.predict_ms(run_rows, row_elements)
        return learned.predict_ms(rows, row_elements)

    def rows_within(self, most_ms: float, most_rows: int, row_elements: int = 1) -> int:
        """Halve a batch until it takes no longer than a time, or smaller ones waste time."""
        rows, run_ms = most_rows, self.predict_ms(most_rows, row_elements)
        most_row_ms = run_ms / most_rows * _WASTE
        while rows > 1 and run_ms > most_ms:
            half = -(-rows // 2)
            run_ms = self.predict_ms(half, row_elements)
            if run_ms > half * most_row_ms:
                break
            rows = half
        return rows

    def expect_ms(self, rows: int, row_elements: int = 1) -> float:
        """Predict the time of a batch, no shorter than the last runs."""
        learned, predicted_ms = self._learned, self.predict_ms(rows, row_elements)
        return predicted_ms if learned is None else predicted_ms * max(1.0, self._ratio) / learned.first_share

    def at_least_ms(self, rows: int, row_elements: int = 1) -> float:
        """Return the least time of a batch in the last runs."""
        learned = self._learned
        if learned is None:
            return self._measured_ms(rows) * self._least_ratio
        if self._runs < _ENOUGH_RUNS:
            return 0.0
        # Nothing is known of smaller runs.
        share = learned.known_share(rows, row_elements)
        return self.predict_ms(rows, row_elements) * min(1.0, self._least_ratio) * share

    def skips(self, run_ms: float) -> bool:
        """Return True if a run is quick and others like it are observed."""
        if run_ms >= _SAMPLED_MS or self._runs < _RUNS:
            return False
        self._skipped = skipped = (self._skipped + 1) % _SAMPLED
        return skipped > 0

    def observe(self, rows: int, run_ms: float, row_elements: int = 1) -> None:
        """Learn from a batch that ran."""
        learned = self._learned
        if learned is None:
            expected_ms = self._measured_ms(rows)
            if expected_ms <= 0:
                return
            ratio = run_ms / expected_ms
            self._ratio += (ratio - self._ratio) / 16
            if abs(self._ratio - self._priced_ratio) > _MOVE * self._priced_ratio + _LEAST_MOVE:
                self._priced_ratio = self._ratio
                self._revision += 1
        else:
            ratio = learned.observe(rows, row_elements, run_ms)
            self._revision = learned.revision
            if not ratio:
                return
            self._ratio += (ratio - self._ratio) / _AVERAGED
        if len(self._ratios) < _RUNS:
            self._ratios.append(ratio)
            self._least_ratio = min(self._least_ratio, ratio) if self._runs else ratio
        else:
            forgotten = self._ratios[self._runs % _RUNS]
            self._ratios[self._runs % _RUNS] = ratio
            is_known = forgotten > self._least_ratio
            self._least_ratio = min(self._least_ratio, ratio) if is_known else min(self._ratios)
        self._runs += 1

    def note_wait(self, rows: int, waited_ms: float, row_elements: int) -> None:
        """Learn from a wait for the readers of a batch, if that is its cost."""

    def _measured_ms(self, rows: int) -> float:
        at = bisect_left(self._rows, rows)
        if at == len(self._rows):
            return self._run_ms[-1] * rows / self._rows[-1]
        if self._rows[at] == rows or at == 0:
            return self._run_ms[at]
        low, high = self._rows[at - 1], self._rows[at]
        share = (rows - low) / (high - low)
        return self._run_ms[at - 1] + share * (self._run_ms[at] - self._run_ms[at - 1])


class EnsembleCosts(BatchCostModel):
    """Mean cost of the members of an ensemble."""

    def __init__(self, members: Sequence[BatchCostModel]) -> None:
        super().__init__()
        self._members = members

    @property
    def revision(self) -> int:
        """See `BatchCostModel`."""
        return sum([member.revision for member in self._members])

    def price(self, max_rows: int, row_elements: int = 1) -> tuple[float, float]:
        """See `BatchCostModel`."""
        prices = [member.price(max_rows, row_elements) for member in self._members]
        call_ms, row_ms = [sum(each) / len(prices) for each in zip(*prices, strict=True)]
        return call_ms, row_ms

    def cost(self, rows: int, row_elements: int = 1) -> float:
        """See `BatchCostModel`."""
        return sum([member.predict_ms(rows, row_elements) for member in self._members]) / len(self._members)

    def at_least_ms(self, rows: int, row_elements: int = 1) -> float:
        """Return 0: an answer may lack members."""
        return 0.0


class StageWaits(BatchCostModel):
    """Time for which a model's first stage makes senders wait: profiled, or learned from waits.

    Args:
        row_ms: Of the slowest stage; 0 if unknown.
        readers: Know it after some runs.
        most_rows: Largest batch.
    """

    def __init__(self, row_ms: float, readers: Readers | None = None, most_rows: int = DEFAULT_ROWS) -> None:
        super().__init__([Measurement(1, row_ms)] if row_ms > 0 else ())
        self._most_rows = most_rows
        self._profiled_ms = self._known_ms = row_ms
        self._readers = readers
        self._moves = 0

    @property
    def revision(self) -> int:
        """See `BatchCostModel`."""
        row_ms = self._row_ms
        if abs(row_ms - self._known_ms) > _MOVE * self._known_ms:
            self._known_ms = row_ms
            self._moves += 1
        return self._revision + self._moves

    @property
    def _row_ms(self) -> float:
        return self._profiled_ms or (0.0 if self._readers is None else self._readers.row_ms)

    def best_rows(self, max_rows: int | None, row_elements: int = 1) -> int:
        """Return the limit, or a short batch: a large one occupies one stage at a time."""
        if max_rows:
            return max_rows
        if self._readers is not None and not self._row_ms:
            return min(_FIRST_ROWS, self._most_rows)
        return self.rows_within(_STAGE_MS if self._profiled_ms else _LEARNED_STAGE_MS, self._most_rows)

    def rows_within(self, most_ms: float, most_rows: int, row_elements: int = 1) -> int:
        """See `BatchCostModel`."""
        row_ms = self._row_ms
        return min(most_rows, max(1, int(most_ms / row_ms))) if row_ms else most_rows

    def at_least_ms(self, rows: int, row_elements: int = 1) -> float:
        """Return 0."""
        return 0.0

    def note_wait(self, rows: int, waited_ms: float, row_elements: int) -> None:
        """See `BatchCostModel`."""
        self.observe(rows, waited_ms, row_elements)
