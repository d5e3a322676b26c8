"""Counts the crashes of a process by the rows that ran in it, and decides which rows run alone and which are refused.

    crash --> 1: alone --> crash --> 2: alone --> ... --> `max_crashes`: refused
                   |
                   +--> survived: forgotten

Rows are known by model and content, so an answer does not depend on the task or the machine that meets them again.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple, Self, TypeAlias

import msgspec
import numpy as np

from anabranch.schemas.limits import MAX_REMEMBERED_CRASHES
from anabranch.schemas.tensors import BYTES, Array, bytes_offsets, raw_from_array

REMEMBERED_MS = 7 * 24 * 3_600_000.0
_START_BYTES = 16
_DIGEST_BYTES = 16
_TEXT_KINDS = "OUS"
#: Axis and value, or None.
Fills: TypeAlias = Sequence[tuple[int, float] | None]


class Verdict(IntEnum):
    """How rows may run, from harmless to worst."""

    FREE = 0
    ALONE = 1
    REFUSED = 2


class Fingerprint(NamedTuple):
    """Content of one row, or of a whole request.

    Attributes:
        start: First bytes, to tell most rows apart without a digest.
    """

    digest: str
    start: bytes


class CrashCount(msgspec.Struct):
    """Crashes with one row under way."""

    start: bytes
    crashes: int = 0
    last_ms: float = 0.0


class CrashLedger(msgspec.Struct):
    """The crashes of a job, as a snapshot.

    Attributes:
        counts: By model and digest.
    """

    counts: dict[str, dict[str, CrashCount]] = {}

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Read a snapshot."""
        return msgspec.json.decode(encoded, type=cls)

    def encode(self) -> bytes:
        """Write a snapshot."""
        return msgspec.json.encode(self)

    def note_crash(self, model: str, under_way: Iterable[Fingerprint], now_ms: float) -> None:
        """Count a crash for each row that was under way."""
        counts = self.counts.setdefault(model, {})
        for row in dict.fromkeys(under_way):
            count = counts.setdefault(row.digest, CrashCount(row.start))
            count.crashes += 1
            count.last_ms = now_ms
        while len(counts) > MAX_REMEMBERED_CRASHES:
            del counts[min(counts, key=lambda digest: (counts[digest].crashes, counts[digest].last_ms))]

    def note_survival(self, model: str, digest: str) -> bool:
        """Forget a row; return False if it was unknown."""
        counts = self.counts.get(model, {})
        found = counts.pop(digest, None) is not None
        if found and not counts:
            del self.counts[model]
        return found

    def expire(self, now_ms: float) -> None:
        """Forget crashes of long ago."""
        for model, counts in list(self.counts.items()):
            for digest, count in list(counts.items()):
                if now_ms - count.last_ms > REMEMBERED_MS:
                    self.note_survival(model, digest)

    def judge(
        self, model: str, arrays: Sequence[Array], units: int, max_crashes: int, fills: Fills = ()
    ) -> list[tuple[Verdict, str]]:
        """Return verdict and digest of each unit; see `fingerprints`."""
        counts = self.counts.get(model)
        verdicts = [(Verdict.FREE, "")] * units
        if not counts:
            return verdicts
        starts = {count.start for count in counts.values()}
        pieces = _all_pieces(arrays, units, fills)
        for unit in range(units):
            if _start(pieces, unit) in starts:
                digest = _digest(pieces, unit)
                count = counts.get(digest)
                if count is not None:
                    verdict = Verdict.REFUSED if count.crashes >= max_crashes else Verdict.ALONE
                    verdicts[unit] = verdict, digest
        return verdicts


def fingerprints(arrays: Sequence[Array], units: int, fills: Fills = ()) -> list[Fingerprint]:
    """Return the fingerprint of each unit.

    Args:
        arrays: Inputs in a fixed order; `units` divides their axis 0 unless it is 1.
        fills: Of each array, the axis that a batch fills up to its longest row, and the value. It does not count.
    """
    pieces = _all_pieces(arrays, units, fills)
    return [Fingerprint(_digest(pieces, unit), _start(pieces, unit)) for unit in range(units)]


class _Pieces(NamedTuple):
    described: bytes
    data: memoryview
    ends: Sequence[int]


def _all_pieces(arrays: Sequence[Array], units: int, fills: Fills) -> list[_Pieces]:
    fills = fills if len(fills) == len(arrays) else (None,) * len(arrays)
    return [
        _pieces(array, units) if fill is None else _unfilled_pieces(array, units, *fill)
        for array, fill in zip(arrays, fills, strict=True)
    ]


def _unfilled_pieces(array: Array, units: int, axis: int, value: float) -> _Pieces:
    others = tuple(other for other in range(array.ndim) if other != axis)
    step = len(array) // units
    rows = []
    for first in range(0, units * step, step):
        row = array[first : first + step]
        kept = np.flatnonzero((row != value).any(axis=others))
        rows.append(row[(slice(None),) * axis + (slice(kept[-1] + 1 if kept.size else 0),)].tobytes())
    shape = [size for other, size in enumerate(array.shape) if other not in {0, axis}]
    return _Pieces(f"{array.dtype.str}{shape}".encode(), memoryview(b"".join(rows)), [0, *accumulate(map(len, rows))])


def _pieces(array: Array, units: int) -> _Pieces:
    data = memoryview(raw_from_array(array))
    is_text = array.dtype.kind in _TEXT_KINDS
    described = f"{BYTES if is_text else array.dtype.str}{array.shape[1:]}".encode()
    if is_text and array.size:
        return _Pieces(described, data, bytes_offsets(data, array.size)[:: array.size // units])
    step = len(data) // units
    return _Pieces(described, data, range(0, len(data) + 1, step) if step else [0] * (units + 1))


def _start(pieces: Sequence[_Pieces], unit: int) -> bytes:
    for piece in pieces:
        first, last = piece.ends[unit], piece.ends[unit + 1]
        if last > first:
            return bytes(piece.data[first : min(last, first + _START_BYTES)])
    return b""


def _digest(pieces: Sequence[_Pieces], unit: int) -> str:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece.described)
        digest.update(piece.data[piece.ends[unit] : piece.ends[unit + 1]])
    return digest.hexdigest()
