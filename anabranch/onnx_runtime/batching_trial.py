"""Tries whether rows give in company what they give alone.

alone      [a] [b] [c] [zeros] [1000 x] ...
together   [b 1000x a] [b a] [a a]               order, twins
           [a zeros] [1000x b] ...               beside outliers
           [c a b] ... [a ... h] ... [64 rows]   sizes
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from anabranch.onnx_runtime.row_comparison import deviations
from anabranch.onnx_runtime.trial_inputs import Row, RowPool
from anabranch.schemas.model import BatchingVerdict
from anabranch.schemas.padding import Padding, cut_all, pad_inputs
from anabranch.schemas.tensors import Array

Run: TypeAlias = Callable[[Mapping[str, Array]], Sequence[Array]]

_SIZES = (8, 5, 3, 2, 4, 6, 7)
_LARGE_SIZES = (12, 16, 17, 24, 32, 33, 48, 64, 128, 256, 512, 1024)
_QUICK_S = 0.05
_FEW = 2
_TOO_SLOW_S = 3.0


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """Extent of a trial: after `budget_s`, only essential batches start."""

    tolerance: float
    most_rows: int
    budget_s: float
    now_s: Callable[[], float]


class NoTrial(Exception):
    """The model cannot be tried, or its outputs tell nothing."""


class _NotRows(Exception):
    """Axis 0 does not count rows."""


def try_batches(
    run: Run,
    outputs: Sequence[str],
    pools: Iterable[RowPool],
    limits: TrialLimits,
    padding: Padding | None = None,
) -> BatchingVerdict:
    """Try a model whose inputs have an open axis 0.

    Args:
        outputs: Names.
        pools: The first that the model runs on is used.

    Raises:
        NoTrial: Nothing can be said.
    """
    trial = _Trial(run, outputs, limits)
    more_pools = iter(pools)
    try:
        origin = trial.choose(more_pools)
        trial.run_batches()
        if trial.most_rows < limits.most_rows and not trial.culprit:
            trial.run_on_smaller(more_pools)
    except _NotRows as found:
        return BatchingVerdict(level="whole", reason=str(found))
    largest = trial.largest
    if largest <= limits.tolerance:
        if not trial.tells():
            raise NoTrial(f"its outputs are equal, or NaN, for all {origin}")
        cut = ", cut short by time" if trial.most_rows < limits.most_rows else ""
        reason = f"rows do not affect each other in {trial.batches} batches of {origin}{cut}"
        against = trial.run_padded(padding) if padding else None
        if padding:
            reason += f"; not padded: {against}" if against else "; nor does padding"
        return BatchingVerdict(
            reason=reason,
            deviation=largest if against else trial.largest,
            most_rows=trial.most_rows,
            pads=padding is not None and not against,
        )
    return BatchingVerdict(
        level="within request",
        reason=trial.culprit,
        deviation=largest if np.isfinite(largest) else None,
        most_rows=trial.most_rows,
    )


class _Trial:
    def __init__(self, run: Run, outputs: Sequence[str], limits: TrialLimits) -> None:
        self._run = run
        self._outputs = outputs
        self._limits = limits
        self._end_s = limits.now_s() + limits.budget_s
        self._rows: list[Row] = []
        self._usual = 0
        #: Outputs of each row alone.
        self._alone: list[Sequence[Array]] = []
        self._row_s = 0.0
        self.largest = 0.0
        self.culprit = ""
        self.batches = 0
        self.most_rows = 0

    def choose(self, pools: Iterable[RowPool]) -> str:
        """Choose a pool; return its origin."""
        problem = "it has no inputs"
        silent: RowPool | None = None
        for pool in pools:
            failure = self._take(pool)
            if failure:
                problem = failure
            elif self.tells():
                return pool.origin
            else:
                silent = silent or pool
        if silent is None:
            raise NoTrial(problem)
        self._take(silent)
        return silent.origin

    def _take(self, pool: RowPool) -> str | None:
        """Run the rows of a pool alone; return a reason against it."""
        started_s = self._limits.now_s()
        try:
            self._run(pool.usual[0])
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            return _line(error)
        self._row_s = self._limits.now_s() - started_s
        if self._row_s > _TOO_SLOW_S:
            raise NoTrial(f"a run takes {self._row_s:.1f} s, more than {_TOO_SLOW_S:g} s")
        self._rows, self._alone = [], []
        self._run_alone(pool.usual)
        self._usual = len(self._rows)
        self._run_alone(pool.outliers)
        return f"it fails on most {pool.origin}" if self._usual < _FEW else None

    def run_batches(self) -> None:
        """Compare rows in batches."""
        self._compare([0], self._run(self._rows[0]), "equal runs differ")
        sizes: set[int] = set()
        for is_essential, batch in self._batches():
            rows = len(batch)
            left_s = self._end_s - self._limits.now_s()
            is_known = self.largest > self._limits.tolerance and rows in sizes
            is_quick = rows <= max(self._limits.most_rows, _SIZES[0]) or rows * self._row_s <= _QUICK_S
            if is_known or not (is_essential or (is_quick and rows * self._row_s <= left_s)):
                continue
            if not self._run_batch(batch):
                return
            sizes.add(rows)

    def _run_batch(self, batch: list[int]) -> bool:
        """Compare a batch; return False if it is larger than needed, and fails."""
        rows, started_s = len(batch), self._limits.now_s()
        try:
            made = self._run(_joined([self._rows[at] for at in batch]))
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            if rows > max(self._limits.most_rows, _SIZES[0]):
                return False
            raise _NotRows(f"rows that run alone fail as {rows} together: {_line(error)}") from None
        self._row_s = min(self._row_s, (self._limits.now_s() - started_s) / rows)
        self._compare(batch, made, f"rows affect each other in a batch of {rows}")
        self.batches += 1
        self.most_rows = max(self.most_rows, rows)
        return True

    def run_padded(self, padding: Padding) -> str | None:
        """Compare rows of many lengths in padded batches; return a reason against padding."""
        name, axis, _ = padding.inputs[0]
        longest = self._rows[0][name].shape[axis]
        axes = [(name, axis) for name, axis, _ in padding.inputs]
        tried: list[tuple[Row, int, dict[str, Array]]] = []
        for at, length in enumerate((longest, 1, longest - 1, longest // 2, 2, longest // 4, 3)):
            row = cut_all(axes, self._rows[at % len(self._rows)], length)
            try:
                made = self._run(row)
            except Exception:  # noqa: BLE001, S112 - a model may need a multiple of a size
                continue
            tried.append((row, length, dict(zip(self._outputs, made, strict=True))))
        if len({length for _, length, _ in tried}) < _FEW:
            return f"it runs on one length of input {name!r} only"
        everyone = list(range(len(tried)))
        batches = [everyone, everyone[::-1], *([at] for at in everyone), *([0, at] for at in everyone)]
        for batch in batches:
            rows = [pad_inputs(padding, tried[at][0], longest) for at in batch]
            try:
                made = self._run(_joined(rows))
            except Exception as error:  # noqa: BLE001 - a model may raise anything
                return f"padded rows fail: {_line(error)}"
            for place, at in enumerate(batch):
                _, length, alone = tried[at]
                parts = {name: array[place : place + 1] for name, array in zip(self._outputs, made, strict=True)}
                if any(parts[name].ndim <= axis for name, axis in padding.outputs):
                    return f"an output has no axis {max(axis for _, axis in padding.outputs)}"
                for name, part in cut_all(padding.outputs, parts, length).items():
                    apart = float(deviations(alone[name], part)[0])
                    if apart > self._limits.tolerance:
                        size = f"by {apart:.2g}" if np.isfinite(apart) else "in value or shape"
                        return f"output {name!r} of a row of length {length} differs {size} if padded to {longest}"
                    self.largest = max(self.largest, apart)
        return None

    def run_on_smaller(self, pools: Iterator[RowPool]) -> None:
        """Run the largest batch on rows that are smaller, if there are any."""
        most, budget_s = self._limits.most_rows, self._limits.budget_s / 2
        elements = _elements(self._rows[0])
        for pool in pools:
            if 2 * _elements(pool.usual[0]) > elements:
                continue
            small = _Trial(self._run, self._outputs, replace(self._limits, budget_s=budget_s))
            if small._take(pool) is not None or small._row_s * most > budget_s:
                continue
            small._run_batch([at % len(small._rows) for at in range(most)])
            self.largest, self.culprit = max(self.largest, small.largest), small.culprit
            self.batches, self.most_rows = self.batches + 1, most
            return

    def _run_alone(self, rows: Sequence[Row]) -> None:
        kept, started_s = 0, self._limits.now_s()
        for row in rows:
            if kept >= _FEW and self._limits.now_s() - started_s > self._limits.budget_s / 5:
                return
            try:
                outputs = self._run(row)
            except Exception:  # noqa: BLE001, S112 - the others tell enough
                continue
            self._check_rows(outputs, 1)
            self._rows.append(row)
            self._alone.append(outputs)
            kept += 1

    def tells(self) -> bool:
        """Tell if an output differs between rows."""
        for arrays in zip(*self._alone, strict=True):
            telling = [array for array in arrays if array.dtype.kind != "f" or np.isfinite(array).any()]
            if any(array.shape != telling[0].shape or deviations(telling[0], array).any() for array in telling[1:]):
                return True
        return False

    def _check_rows(self, outputs: Sequence[Array], rows: int) -> None:
        for name, array in zip(self._outputs, outputs, strict=True):
            if array.ndim == 0 or array.shape[0] != rows:
                raise _NotRows(f"axis 0 of output {name!r} does not count rows: {list(array.shape)} for {rows} rows")

    def _compare(self, batch: Sequence[int], made: Sequence[Array], where: str) -> None:
        self._check_rows(made, len(batch))
        for index, name in enumerate(self._outputs):
            parts = [self._alone[at][index] for at in batch]
            if len({part.shape for part in parts}) > 1:
                raise _NotRows(f"output {name!r} has another shape for each row")
            apart = deviations(np.concatenate(parts), made[index])
            row = int(np.argmax(apart))
            if apart[row] > self._limits.tolerance and not self.culprit:
                size = f"by {apart[row]:.2g}" if np.isfinite(apart[row]) else "in value"
                self.culprit = f"{where}: output {name!r} of row {row} differs {size} from the row alone"
            self.largest = max(self.largest, float(apart[row]))

    def _batches(self) -> Iterator[tuple[bool, list[int]]]:
        """Yield batches, each with whether it is essential."""
        usual, everyone = range(self._usual), range(len(self._rows))
        outliers = everyone[self._usual :]
        rng = np.random.default_rng(1)

        def crowd(rows: int, of: range) -> list[int]:
            return [int(at) for at in rng.integers(0, len(of), rows)]

        yield True, [1, *outliers[1:2], 0]
        yield True, [usual[-1], 0]
        yield True, [everyone[-at % len(everyone)] for at in range(_SIZES[0])]
        most = self._limits.most_rows
        while most > _SIZES[0] and most * self._row_s > self._limits.budget_s / 3:
            most //= 2
        yield False, crowd(most, everyone)
        for outlier in outliers:
            yield False, [0, outlier]
            yield False, [outlier, 1]
        yield False, [0, 0]
        for rows in _SIZES:
            yield False, [usual[at % len(usual)] for at in range(rows, 0, -1)]
        for rows in (self._limits.most_rows, *_LARGE_SIZES):
            yield False, crowd(rows, usual if rows % 2 else everyone)


def _joined(rows: Sequence[Row]) -> Row:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _elements(row: Row) -> int:
    return sum(array.size for array in row.values())


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
