"""Counts of a task, by model and phase.

Buckets of time double (64 us to 34 s). Counts of tasks can be added, percentiles cannot.

    model / NAME-VERSION / requests, rows, batches           answered with outputs
    model / NAME-VERSION / padded_elements, filled_elements  elements of padded inputs, and the padding among them
    model / NAME-VERSION / PHASE / us                        their total time
    model / NAME-VERSION / PHASE / le / LIMIT / requests     at most LIMIT microseconds
    error / CODE / requests                                  answered with an error
    phase / PHASE / defects                                  unexpected exceptions
    exchange / claims, claimed_bytes                         records through shared memory
    exchange / large_messages                                large records sent as messages
    exchange / lost                                          unreadable records
    models / opened                                          operators that have loaded their models
    left_out / TOKEN                                         a model that did not load: see `left_out_token`
    clock / ahead_requests, ahead_ms                         sent by a clock ahead of the task's, in sum
    clock / behind_requests, behind_ms                       read after their deadline
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from anabranch.operators.core.requests import Request
from anabranch.schemas.latency_breakdown import PHASES, SUFFIX, LatencyBreakdown
from anabranch.schemas.model import LeftOut
from anabranch.schemas.signatures import Signature

Path = tuple[str, ...]

#: Bucket n holds times up to 2 ** (_FIRST_POWER + n) microseconds.
_FIRST_POWER, _BUCKETS = 6, 20
LIMITS_US: tuple[int | None, ...] = (*[1 << (_FIRST_POWER + bucket) for bucket in range(_BUCKETS)], None)
#: From the timestamp of the record to the written answer.
TOTAL = "total"
#: Bounds the sum in a counter of 63 bits: a sender's clock may be wrong.
_MOST_US = 1 << 40
_MOST_SKEW_MS = 1 << 40
_MOST_REASON = 500


class _Histogram:
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
    __slots__ = ("batches", "elements", "filled", "requests", "rows", "spent")

    def __init__(self) -> None:
        self.requests = self.rows = self.batches = self.elements = self.filled = 0
        self.spent = {phase: _Histogram() for phase in (*PHASES, TOTAL)}


class Meter:
    """The counts of one task."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _Model] = {}
        self._errors: dict[str, int] = {}
        self._defects: dict[str, int] = {}
        self._exchange: dict[str, int] = {}
        self._clock: dict[str, int] = {}
        self._opened: dict[Path, int] = {}
        self._admit_us = 0

    def note_admission(self, requests: int, spent_ms: float) -> None:
        """Set the admission time of the next batches."""
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
        """Count requests that were answered from one batch."""
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
        counts.rows += sum([request.rows for request in requests])
        # Under load, many have the same times.
        times = [(request.source.timestamp_ms, request.arrived_ms) for request in requests]
        distinct = Counter(times) if count > 1 else dict.fromkeys(times, 1)
        for (sent_ms, read_ms), alike in distinct.items():
            if read_ms < 0:  # restored from state
                read_ms = sent_ms  # noqa: PLW2901 - the time to count
            elif sent_ms < 0:  # no timestamp
                sent_ms = int(read_ms)  # noqa: PLW2901 - the same
            queue.add(int((taken_ms - read_ms) * 1000), alike)
            broker_us = int((read_ms - sent_ms) * 1000)
            if broker_us < 0:
                self._note_clock("ahead", sent_ms - read_ms, alike)
            broker.add(broker_us, alike)
            total.add(int((written_ms - sent_ms) * 1000), alike)

    def note_padding(self, signature: Signature, elements: int, filled: int) -> None:
        """Count the elements of padded inputs, `filled` of them padding."""
        counts = self._of(signature)
        counts.elements += elements
        counts.filled += filled

    def note_split(self, signature: Signature, rows: int, breakdown: LatencyBreakdown, written_ms: float) -> None:
        """Count a split request that was answered."""
        counts = self._of(signature)
        counts.requests += 1
        counts.rows += rows
        for name, us in breakdown.to_parameters(written_ms).items():
            counts.spent[name.removesuffix(SUFFIX)].add(us)
        counts.spent[TOTAL].add(round((written_ms - breakdown.sent_ms) * 1000))
        if breakdown.sent_ms > breakdown.read_ms:
            self._note_clock("ahead", breakdown.sent_ms - breakdown.read_ms)

    def note_error(self, code: str, requests: int = 1) -> None:
        """Count requests that were answered with an error."""
        self._errors[code] = self._errors.get(code, 0) + requests

    def note_defect(self, phase: str) -> None:
        """Count an unexpected exception."""
        self._defects[phase] = self._defects.get(phase, 0) + 1

    def note_claim(self, size_bytes: int) -> None:
        """Count a record that travels through shared memory."""
        self._note_exchange("claims", 1)
        self._note_exchange("claimed_bytes", size_bytes)

    def note_large_message(self) -> None:
        """Count a large record that travels as a message."""
        self._note_exchange("large_messages", 1)

    def note_lost(self) -> None:
        """Count a record that this task could not read."""
        self._note_exchange("lost", 1)

    def note_behind(self, age_ms: float) -> None:
        """Count a request that was read after its deadline."""
        self._note_clock("behind", age_ms)

    def note_opened(self, left_out: Iterable[LeftOut]) -> None:
        """Count an operator that has loaded its models, and name the others."""
        paths: list[Path] = [("models", "opened"), *(("left_out", left_out_token(each)) for each in left_out)]
        self._opened = dict.fromkeys(paths, 1)

    @property
    def has_more(self) -> bool:
        """True if anything was counted since the last drain."""
        counts = (self._models, self._errors, self._defects, self._exchange, self._clock, self._opened)
        return any(counts)

    def drain(self) -> dict[Path, int]:
        """Remove and return all counts; buckets are cumulative."""
        drained: dict[Path, int] = {("error", code, "requests"): count for code, count in self._errors.items()}
        drained |= {("phase", phase, "defects"): count for phase, count in self._defects.items()}
        drained |= {("exchange", name): count for name, count in self._exchange.items()}
        drained |= {("clock", name): count for name, count in self._clock.items()}
        drained |= self._opened
        for (name, version), counts in self._models.items():
            group = ("model", f"{name}-{version}")
            drained[(*group, "requests")] = counts.requests
            drained[(*group, "rows")] = counts.rows
            drained[(*group, "batches")] = counts.batches
            drained[(*group, "padded_elements")] = counts.elements
            drained[(*group, "filled_elements")] = counts.filled
            for phase, histogram in counts.spent.items():
                drained[(*group, phase, "us")] = histogram.us
                below = 0
                for limit_us, count in zip(LIMITS_US, histogram.counts, strict=True):
                    below += count
                    drained[(*group, phase, "le", "inf" if limit_us is None else str(limit_us), "requests")] = below
        self._models, self._errors, self._defects, self._exchange, self._clock = {}, {}, {}, {}, {}
        self._opened = {}
        return {path: count for path, count in drained.items() if count}

    def _note_exchange(self, name: str, count: int) -> None:
        self._exchange[name] = self._exchange.get(name, 0) + count

    def _note_clock(self, side: str, skew_ms: float, count: int = 1) -> None:
        requests, total = f"{side}_requests", f"{side}_ms"
        self._clock[requests] = self._clock.get(requests, 0) + count
        self._clock[total] = self._clock.get(total, 0) + count * min(int(skew_ms), _MOST_SKEW_MS)

    def _of(self, signature: Signature) -> _Model:
        key = (signature.model_name, signature.model_version)
        counts = self._models.get(key)
        if counts is None:
            counts = self._models[key] = _Model()
        return counts


def left_out_token(left_out: LeftOut) -> str:
    """Write a reason as the name of a metric: Flink's interfaces show no other text of a task."""
    fields = [left_out.name, left_out.version, left_out.reason[:_MOST_REASON]]
    return urlsafe_b64encode(msgspec.json.encode(fields)).decode().rstrip("=")


def read_left_out(token: str) -> LeftOut:
    """Read a reason from the name of a metric; raise ValueError."""
    fields = msgspec.json.decode(urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=tuple[str, str, str])
    return LeftOut(*fields)


def bucket_of(us: int) -> int:
    """Find the first bucket with a limit not below a time; the time may be negative."""
    if us <= 2**_FIRST_POWER:
        return 0
    return min((us - 1).bit_length() - _FIRST_POWER, _BUCKETS)


def percentile_us(buckets: Sequence[float], share: float) -> float:
    """Interpolate a percentile within its bucket, from cumulative `buckets`; 0 without requests."""
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
