"""Learns the time of a model's runs from their sizes, without measurements.

A run takes `call_ms`, `element_ms` per element, and `square_ms` per element and element of its row: two of them, by
the least relative error. Until sizes differ, each run takes as long as the last ones; a smaller one its share. What
predictions refuse does not come back, so that the first runs, and a few slow ones, count less.
"""

from collections.abc import Callable, Sequence

#: Last runs of a size that count, and least weight of a run in its average of elements.
_LAST, _LEAST_SHARE = 5, 0.25
#: Runs until predictions count in full.
_FULL_AFTER = 3
#: Runs after which a size counts half.
_HALF_LIFE = 256
#: Runs between two fits.
_PAUSE = 4
#: Relative error that needs no fit, and that counts as noise.
_NOISE = 0.1
#: Relative error of two terms that needs no others.
_CLOSE = 0.05
#: Difference that never counts.
_LEAST_MS = 0.01
#: Error of a further term, relative to the one without it.
_GAIN = 0.8

#: Of a call, of an element, and of an element and element of its row.
Terms = tuple[float, float, float]


class _Size:
    """Average elements, and lower quartile of the last times, of about one size."""

    __slots__ = ("_element_ms", "elements", "is_calm", "last", "ms", "runs", "squares")

    def __init__(self) -> None:
        self.elements = self.squares = self.ms = 0.0
        self.runs = self.last = 0
        self._element_ms: list[float] = []
        #: True if all of them are alike.
        self.is_calm = False

    def observe(self, rows: int, row_elements: int, run_ms: float, number: int) -> None:
        self.runs += 1
        self.last = number
        share = max(1 / self.runs, _LEAST_SHARE)
        elements = max(1, rows * row_elements)
        self.elements += (elements - self.elements) * share
        self.squares += (elements * row_elements - self.squares) * share
        ordered = sorted(last := [*self._element_ms[1 - _LAST :], run_ms / elements])
        self._element_ms = last
        self.ms = ordered[(len(ordered) - 1) // 4] * self.elements
        spread_ms = (ordered[-1] - ordered[0]) * self.elements
        self.is_calm = len(ordered) == _LAST and spread_ms <= 2 * _NOISE * self.ms + _LEAST_MS

    def predict_ms(self, terms: Terms) -> float:
        return terms[0] + terms[1] * self.elements + terms[2] * self.squares


class LearnedCost:
    """Time of the runs of one model, by rows and by elements of a row."""

    __slots__ = ("_fitted", "_least_elements", "_runs", "_sizes", "_terms", "revision")

    def __init__(self) -> None:
        #: Number of changes of the predictions that matter.
        self.revision = 0
        self._terms: Terms = (0.0, 0.0, 0.0)
        #: Of a run.
        self._least_elements = float("inf")
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._runs = self._fitted = 0

    def predict_ms(self, rows: int, row_elements: int) -> float:
        """Predict the time of one run; 0 before the first."""
        call_ms, element_ms, square_ms = self._terms
        expected_ms = call_ms + rows * row_elements * (element_ms + square_ms * row_elements)
        return expected_ms * self.known_share(rows, row_elements)

    @property
    def first_share(self) -> float:
        """Share by which the first runs count less."""
        return min(1.0, self._runs / _FULL_AFTER) or 1.0

    def known_share(self, rows: int, row_elements: int) -> float:
        """Return the size of a run relative to the smallest so far, at most `first_share`."""
        return min(1.0, rows * row_elements / self._least_elements) * min(1.0, self._runs / _FULL_AFTER)

    def price(self, max_rows: int, row_elements: int) -> tuple[float, float]:
        """Return the time of a batch that does not depend on its rows, and that of each row."""
        call_ms, element_ms, square_ms = self._terms
        share = self.known_share(max_rows, row_elements)
        return call_ms * share, row_elements * (element_ms + square_ms * row_elements) * share

    def observe(self, rows: int, row_elements: int, run_ms: float) -> float:
        """Learn from a run; return its time relative to the prediction, 0 without one."""
        key = rows.bit_length(), row_elements.bit_length()
        size = self._sizes.get(key)
        elements = rows * row_elements or 1
        self._runs = runs = self._runs + 1
        if size is None or runs <= _FULL_AFTER or elements < self._least_elements:
            self._learn(size or self._sizes.setdefault(key, _Size()), rows, row_elements, run_ms, at_once=True)
            return 0.0
        call_ms, element_ms, square_ms = self._terms
        expected_ms = call_ms + elements * (element_ms + square_ms * row_elements)
        if size.is_calm and abs(run_ms - expected_ms) <= _NOISE * expected_ms + _LEAST_MS:
            size.last = runs
        else:
            self._learn(size, rows, row_elements, run_ms, at_once=False)
        return run_ms / expected_ms if expected_ms else 0.0

    def _learn(self, size: _Size, rows: int, row_elements: int, run_ms: float, *, at_once: bool) -> None:
        before, elements = self._least_elements, rows * row_elements or 1
        self._least_elements = min(before, elements)
        size.observe(rows, row_elements, run_ms, self._runs)
        moves = self._runs <= _FULL_AFTER or elements < (1 - _NOISE) * before
        is_off = abs(size.predict_ms(self._terms) - size.ms) > _NOISE * size.ms + _LEAST_MS
        if moves or (is_off and (at_once or self._runs - self._fitted >= _PAUSE)):
            self._fitted = self._runs
            sizes = list(self._sizes.values())  # Other threads add to it.
            old, self._terms = self._terms, _fit(sizes, self._runs)
            changes = [(each.predict_ms(old), each.predict_ms(self._terms)) for each in sizes]
            self.revision += moves or any(abs(new - old) > _NOISE * old for old, new in changes)


def _fit(sizes: Sequence[_Size], runs: int) -> Terms:
    # Relative errors count.
    ages = [0.5 ** ((runs - each.last) / _HALF_LIFE) for each in sizes]
    weights = [age / max(each.ms, _LEAST_MS) ** 2 for age, each in zip(ages, sizes, strict=True)]

    def error(terms: Terms) -> float:
        missed = [weight * (each.predict_ms(terms) - each.ms) ** 2 for weight, each in zip(weights, sizes, strict=True)]
        return float(sum(missed) / sum(ages))

    best: Terms = (sum(w * each.ms for w, each in zip(weights, sizes, strict=True)) / sum(weights), 0.0, 0.0)
    least = error(best)
    if least <= _NOISE**2:
        return best
    for first, second in ((0, 1), (0, 2), (1, 2)):
        if least <= _CLOSE**2:
            break
        terms = _two_terms(sizes, weights, first, second)
        if (missed := error(terms)) < _GAIN * least:
            best, least = terms, missed
    return best


_FEATURES: tuple[Callable[[_Size], float], ...] = (lambda _: 1.0, lambda size: size.elements, lambda size: size.squares)


def _two_terms(sizes: Sequence[_Size], weights: Sequence[float], first: int, second: int) -> Terms:
    """Return the weighted least squares of two terms, neither negative."""
    aa = ab = bb = ay = by = 0.0
    for size, weight in zip(sizes, weights, strict=True):
        a, b, y = _FEATURES[first](size), _FEATURES[second](size), size.ms
        aa, ab, bb = aa + weight * a * a, ab + weight * a * b, bb + weight * b * b
        ay, by = ay + weight * a * y, by + weight * b * y
    terms = [0.0, 0.0, 0.0]
    determinant = aa * bb - ab * ab
    if determinant > 1e-9 * aa * bb:
        terms[first], terms[second] = (ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant
    if terms[first] < 0 or determinant <= 1e-9 * aa * bb:
        terms[first], terms[second] = 0.0, by / bb if bb else 0.0
    elif terms[second] < 0:
        terms[first], terms[second] = ay / aa, 0.0
    return terms[0], terms[1], terms[2]
