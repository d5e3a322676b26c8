"""Counts what a task does, by model and stage, for whoever watches it.

Requests are counted in buckets of time that double (64 us, 128 us, ... 34 s), since percentiles of several tasks cannot
be added and counts can. A count is named by a path, as Flink names metrics: groups, then the counter.

    model / NAME-VERSION / requests, rows, batches               of requests that were answered with outputs
    model / NAME-VERSION / STAGE / us                            time spent, over all requests
    model / NAME-VERSION / STAGE / le / LIMIT / requests         requests that spent so many microseconds at most
    error / CODE / requests                                      requests that were answered with an error
    phase / PHASE / defects                                      unexpected exceptions
    exchange / claims, claimed_bytes                             records for other tasks that went by shared memory
    exchange / large_messages                                    those that were large enough for it, and did not
    exchange / lost                                              those whose reader could not have them
"""

from collections.abc import Sequence

from anabranch.operators.core.requests import Request
from anabranch.schemas.latency_breakdown import STAGES, SUFFIX, LatencyBreakdown
from anabranch.schemas.signatures import Signature

Path = tuple[str, ...]

#: The bucket of so many microseconds, and of fewer, has the limit 2 ** (_FIRST_POWER + bucket); the last has none.
_FIRST_POWER, _BUCKETS = 6, 20
LIMITS_US: tuple[int | None, ...] = (*[1 << (_FIRST_POWER + bucket) for bucket in range(_BUCKETS)], None)
#: Beside the stages: from the record's timestamp to the written answer.
TOTAL = "total"
#: A sender's clock may say anything, and a counter of Flink's has 63 bits for the sum of many requests.
_MOST_US = 1 << 40


class _Histogram:
    """Requests by the time that they spent."""

    __slots__ = ("counts", "us")

    def __init__(self) -> None:
        self.us = 0
        self.counts = [0] * len(LIMITS_US)

    def add(self, us: int, requests: int = 1) -> None:
        if not 0 <= us <= _MOST_US:
            us = 0 if us < 0 else _MOST_US
        self.us += us * requests
        self.counts[bucket_of(us)] += requests


class _Model:
    __slots__ = ("batches", "requests", "rows", "spent")

    def __init__(self) -> None:
        self.requests = self.rows = self.batches = 0
        self.spent = {stage: _Histogram() for stage in (*STAGES, TOTAL)}


class Meter:
    """The counts of one task."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _Model] = {}
        self._errors: dict[str, int] = {}
        self._defects: dict[str, int] = {}
        self._exchange: dict[str, int] = {}
        self._admit_us = 0

    def note_admission(self, requests: int, spent_ms: float) -> None:
        """Notes what admission took of late: that of the next batches."""
        self._admit_us = round(spent_ms * 1000 / requests)

    def note_batch(
        self,
        signature: Signature,
        requests: Sequence[Request],
        *,
        taken_ms: float,
        started_ms: float,
        ended_ms: float,
        written_ms: float,
    ) -> None:
        """Counts requests that ran as one batch, and were answered.

        Args:
            signature: Of all of them.
            requests: All of the batch.
            taken_ms: Unix time, as all others; see `anabranch.schemas.latency_breakdown`.
        """
        counts = self._of(signature)
        count = len(requests)
        counts.requests += count
        counts.batches += 1
        spent = counts.spent
        spent["admit"].add(self._admit_us, count)
        spent["batch"].add(round((started_ms - taken_ms) * 1000), count)
        spent["session"].add(round((ended_ms - started_ms) * 1000), count)
        spent["encode"].add(round((written_ms - ended_ms) * 1000), count)
        broker, queue, total = spent["broker"], spent["queue"], spent[TOTAL]
        for request in requests:
            counts.rows += request.rows
            sent_ms, read_ms = request.source.timestamp_ms, request.arrived_ms
            if read_ms < 0:  # what was restored after a failure is said to have come long ago
                read_ms = sent_ms
            elif sent_ms < 0:  # a record without a timestamp
                sent_ms = int(read_ms)
            queue.add(int((taken_ms - read_ms) * 1000))
            broker.add(int((read_ms - sent_ms) * 1000))
            total.add(int((written_ms - sent_ms) * 1000))

    def note_split(self, signature: Signature, rows: int, breakdown: LatencyBreakdown, written_ms: float) -> None:
        """Counts a request that was split, and answered."""
        counts = self._of(signature)
        counts.requests += 1
        counts.rows += rows
        for name, us in breakdown.to_parameters(written_ms).items():
            counts.spent[name.removesuffix(SUFFIX)].add(us)
        counts.spent[TOTAL].add(round((written_ms - breakdown.sent_ms) * 1000))

    def note_error(self, code: str, requests: int = 1) -> None:
        """Counts requests that were answered with an error."""
        self._errors[code] = self._errors.get(code, 0) + requests

    def note_defect(self, phase: str) -> None:
        """Counts an unexpected exception."""
        self._defects[phase] = self._defects.get(phase, 0) + 1

    def note_claim(self, size_bytes: int) -> None:
        """Counts a record that another task gets by shared memory."""
        self._note_exchange("claims", 1)
        self._note_exchange("claimed_bytes", size_bytes)

    def note_large_message(self) -> None:
        """Counts a record that was large enough for shared memory, but went as a message."""
        self._note_exchange("large_messages", 1)

    def note_lost(self) -> None:
        """Counts a record that this task could not have."""
        self._note_exchange("lost", 1)

    @property
    def has_more(self) -> bool:
        """Whether anything was counted since it was drained."""
        return bool(self._models or self._errors or self._defects or self._exchange)

    def drain(self) -> dict[Path, int]:
        """What was counted since the last time; buckets hold those of all smaller ones, too."""
        drained: dict[Path, int] = {("error", code, "requests"): count for code, count in self._errors.items()}
        drained |= {("phase", phase, "defects"): count for phase, count in self._defects.items()}
        drained |= {("exchange", name): count for name, count in self._exchange.items()}
        for (name, version), counts in self._models.items():
            group = ("model", f"{name}-{version}")
            drained[(*group, "requests")] = counts.requests
            drained[(*group, "rows")] = counts.rows
            drained[(*group, "batches")] = counts.batches
            for stage, histogram in counts.spent.items():
                drained[(*group, stage, "us")] = histogram.us
                below = 0
                for limit_us, count in zip(LIMITS_US, histogram.counts, strict=True):
                    below += count
                    drained[(*group, stage, "le", "inf" if limit_us is None else str(limit_us), "requests")] = below
        self._models, self._errors, self._defects, self._exchange = {}, {}, {}, {}
        return {path: count for path, count in drained.items() if count}

    def _note_exchange(self, name: str, count: int) -> None:
        self._exchange[name] = self._exchange.get(name, 0) + count

    def _of(self, signature: Signature) -> _Model:
        key = (signature.model_name, signature.model_version)
        counts = self._models.get(key)
        if counts is None:
            counts = self._models[key] = _Model()
        return counts


def bucket_of(us: int) -> int:
    """The first bucket whose limit is not below a time; clocks that disagree make times below 0."""
    if us <= 2**_FIRST_POWER:
        return 0
    return min((us - 1).bit_length() - _FIRST_POWER, _BUCKETS)


def percentile_us(buckets: Sequence[float], share: float) -> float:
    """The time that a share of the requests spent at most, on a line through its bucket; 0 where there are none.

    Args:
        buckets: Requests up to each of `LIMITS_US`, as drained: not decreasing.
        share: From 0 to 1.
    """
    wanted = share * buckets[-1]
    if not wanted:
        return 0.0
    below, low_us = 0.0, 0.0
    for limit_us, upto in zip(LIMITS_US, buckets, strict=True):
        if limit_us is None:
            break
        if upto >= wanted and upto > below:
            return low_us + (limit_us - low_us) * (wanted - below) / (upto - below)
        below, low_us = upto, float(limit_us)
    return low_us
