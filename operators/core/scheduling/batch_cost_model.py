"""How long a batch takes: what was measured when the model was loaded, corrected by what it takes since.

A larger batch costs less per row on some models and more on others (on a CPU, where the rows no longer fit into a
cache), so the best size is measured and not assumed.
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

#: A smaller batch is preferred, for its latency, where it costs at most this much more per row.
_TOLERANCE = 1.05
#: What a batch costs beside its session: its way through Python and Flink, whatever its size.
_CALL_MS = 0.1
#: Where a model names no limit: so many rows share a batch, and more where a batch of more is quick.
DEFAULT_ROWS, MOST_ROWS = 64, 1024
#: What that may take: the next request waits as long, however urgent it is.
MOST_MS = 1.0
#: The corrections that are remembered: the least of them is what "at the very least" means.
_RUNS = 256


class Measurement(msgspec.Struct, frozen=True, array_like=True):
    """How long a batch took; the least of a few runs."""

    rows: int
    run_ms: float


class BatchCostModel:
    """What the batches of one model cost on one machine.

    Args:
        measured: Sorted by rows; empty where a model could not be measured.
    """

    def __init__(self, measured: Sequence[Measurement] = ()) -> None:
        self._rows = [each.rows for each in measured]
        self._run_ms = [each.run_ms for each in measured]
        #: What batches take, as a multiple of what was measured: of late, in the last runs, and at the least of these.
        self._ratio = 1.0
        self._ratios: list[float] = []
        self._least_ratio = 0.0
        self._runs = 0
        self._best: dict[int | None, int] = {}

    def best_rows(self, max_rows: int | None) -> int:
        """The size of batch that costs least per row, up to a limit; the limit itself where nothing was measured.

        Args:
            max_rows: None for `DEFAULT_ROWS`, and for more where these were measured to be quick.
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
        # Beyond the largest that was measured nothing is known to be worse.
        return max(limit, best) if best == self._rows[-1] else best

    def predict_ms(self, rows: int) -> float:
        """What a batch of so many rows is expected to take; 0 where nothing is known."""
        return self._measured_ms(rows) * self._ratio

    def at_least_ms(self, rows: int) -> float:
        """What a batch of so many rows takes for certain: as in the quickest of the last runs."""
        return self._measured_ms(rows) * self._least_ratio

    def observe(self, rows: int, run_ms: float) -> None:
        """Learns from a batch that was run."""
        expected_ms = self._measured_ms(rows)
        if expected_ms <= 0:
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
