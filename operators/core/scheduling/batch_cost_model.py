"""Predicts the time of batches: measurements at load, corrected by later runs."""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

#: Relative cost of a preferred smaller batch.
_TOLERANCE = 1.05
#: Overhead of a batch in Python and Flink.
_CALL_MS = 0.1
#: Default limit of rows, and largest measured size.
DEFAULT_ROWS, MOST_ROWS = 64, 1024
#: Longest batch beyond the default limit.
MOST_MS = 1.0
#: Runs that `at_least_ms` considers.
_RUNS = 256
#: Weight of the earlier runs of a model without measurements.
_AVERAGED = 4


class Measurement(msgspec.Struct, frozen=True, array_like=True):
    """Least time of a few runs."""

    rows: int
    run_ms: float


class BatchCostModel:
    """Cost of the batches of one model on one machine; `measured` is sorted by rows."""

    def __init__(self, measured: Sequence[Measurement] = ()) -> None:
        self._rows = [each.rows for each in measured]
        self._run_ms = [each.run_ms for each in measured]
        #: Observed / measured time: average, last values, their minimum.
        self._ratio = 1.0
        self._ratios: list[float] = []
        self._least_ratio = 0.0
        self._runs = 0
        #: Average time of the last runs of a model without measurements.
        self._run_average_ms = 0.0
        self._best: dict[int | None, int] = {}

    def best_rows(self, max_rows: int | None) -> int:
        """Find the batch size of least cost per row, up to a limit.

        Args:
            max_rows: None for `DEFAULT_ROWS`, or more if quick.
        """
        best = self._best.get(max_rows)
        if best is None:
            best = self._best[max_rows] = self._find_best(max_rows)
        return best

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

    def predict_ms(self, rows: int) -> float:
        """Predict the time of a batch; 0 without measurements."""
        return self._measured_ms(rows) * self._ratio

    def expect_ms(self, rows: int) -> float:
        """Predict the time of a batch; without measurements, as that of the last runs."""
        return self.predict_ms(rows) if self._rows else self._run_average_ms

    def at_least_ms(self, rows: int) -> float:
        """Return the least time of a batch in the last runs."""
        return self._measured_ms(rows) * self._least_ratio

    def observe(self, rows: int, run_ms: float) -> None:
        """Learn from a batch that ran."""
        expected_ms = self._measured_ms(rows)
        if expected_ms <= 0:
            self._run_average_ms += (run_ms - self._run_average_ms) / (_AVERAGED if self._run_average_ms else 1)
            return
        ratio = run_ms / expected_ms
        self._ratio += (ratio - self._ratio) / 16
        if len(self._ratios) < _RUNS:
            self._ratios.append(ratio)
            self._least_ratio = min(self._least_ratio, ratio) if self._runs else ratio
        else:
            forgotten = self._ratios[self._runs % _RUNS]
            self._ratios[self._runs % _RUNS] = ratio
            is_known = forgotten > self._least_ratio
            self._least_ratio = min(self._least_ratio, ratio) if is_known else min(self._ratios)
        self._runs += 1

    def _measured_ms(self, rows: int) -> float:
        if not self._rows:
            return 0.0
        at = bisect_left(self._rows, rows)
        if at == len(self._rows):
            return self._run_ms[-1] * rows / self._rows[-1]
        if self._rows[at] == rows or at == 0:
            return self._run_ms[at]
        low, high = self._rows[at - 1], self._rows[at]
        share = (rows - low) / (high - low)
        return self._run_ms[at - 1] + share * (self._run_ms[at] - self._run_ms[at - 1])
