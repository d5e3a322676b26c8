"""CrashLedger: which rows were under way when processes ended, and what follows for them."""

from typing import Any

import numpy as np
import pytest

from anabranch.operators.core.crash_ledger import REMEMBERED_MS, CrashLedger, Verdict, fingerprints
from anabranch.schemas.limits import MAX_REMEMBERED_CRASHES

MODEL = "m/1"
LIMIT = 3
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
MARKS = np.array([[b"a"], [b"bc"], [b""], [b"a"]], dtype=object)


def verdicts(ledger: CrashLedger, rows: Any = ROWS, model: str = MODEL) -> list[Verdict]:
    return [verdict for verdict, _ in ledger.judge(model, [rows], len(rows), LIMIT)]


def crashed(times: int, rows: Any = ROWS[1:3]) -> CrashLedger:
    ledger = CrashLedger()
    for time in range(times):
        ledger.note_crash(MODEL, fingerprints([rows], len(rows)), float(time))
    return ledger


@pytest.mark.parametrize(
    ("crashes", "verdict"), [(0, Verdict.FREE), (1, Verdict.ALONE), (2, Verdict.ALONE), (3, Verdict.REFUSED)]
)
def test_row_under_way_in_crashes_gets_the_verdict(crashes: int, verdict: Verdict) -> None:
    assert verdicts(crashed(crashes)) == [Verdict.FREE, verdict, verdict, Verdict.FREE]


def test_row_of_another_model_or_shape_is_free() -> None:
    ledger = crashed(3)
    assert verdicts(ledger, model="m/2") == [Verdict.FREE] * 4
    assert verdicts(ledger, ROWS.reshape(4, 3, 1)) == [Verdict.FREE] * 4
    assert verdicts(ledger, ROWS.view(np.int32)) == [Verdict.FREE] * 4


def test_row_that_survived_is_forgotten() -> None:
    ledger = crashed(2)
    [first, second] = [digest for _, digest in ledger.judge(MODEL, [ROWS], 4, LIMIT) if digest]
    assert ledger.note_survival(MODEL, first)
    assert not ledger.note_survival(MODEL, first)
    assert verdicts(ledger) == [Verdict.FREE, Verdict.FREE, Verdict.ALONE, Verdict.FREE]
    assert ledger.note_survival(MODEL, second)
    assert ledger.counts == {}


def test_row_twice_in_a_batch_counts_one_crash() -> None:
    assert verdicts(crashed(1, np.concatenate([ROWS, ROWS])))[0] is Verdict.ALONE
    assert next(iter(crashed(1, np.concatenate([ROWS, ROWS])).counts[MODEL].values())).crashes == 1


def test_ledger_snapshot_gives_the_same_verdicts() -> None:
    ledger = crashed(3)
    assert verdicts(CrashLedger.decode(ledger.encode())) == verdicts(ledger)


def test_ledger_old_crashes_expire() -> None:
    ledger = crashed(3)
    ledger.expire(REMEMBERED_MS)
    assert ledger.counts
    ledger.expire(REMEMBERED_MS + 3)
    assert ledger.counts == {}


def test_ledger_full_keeps_the_rows_with_most_crashes() -> None:
    ledger = crashed(2)
    many = np.arange(2 * MAX_REMEMBERED_CRASHES, dtype=np.float32).reshape(-1, 1)
    ledger.note_crash(MODEL, fingerprints([many], len(many)), 9.0)
    assert len(ledger.counts[MODEL]) == MAX_REMEMBERED_CRASHES
    assert verdicts(ledger) == [Verdict.FREE, Verdict.ALONE, Verdict.ALONE, Verdict.FREE]


def test_fingerprints_equal_rows_are_equal_and_others_not() -> None:
    for arrays in ([MARKS], [ROWS[[0, 1, 2, 0]], MARKS], [np.zeros((4, 0), np.float32), MARKS]):
        found = [each.digest for each in fingerprints(arrays, 4)]
        assert found[0] == found[3]
        assert len(set(found)) == 3


def test_fingerprint_of_a_row_is_that_of_the_row_alone() -> None:
    for array in (ROWS, MARKS, np.zeros((4, 0))):
        assert fingerprints([array], 4) == [fingerprints([array[row : row + 1]], 1)[0] for row in range(4)]


def test_fingerprint_of_a_filled_row_is_that_of_the_row() -> None:
    """A batch fills its rows up to the longest, which differs from batch to batch."""
    fills = [(1, 0.0), None, (2, 7.0)]
    short = [np.array([[5, 0, 6]]), np.array([[1.0]]), np.arange(4).reshape(1, 2, 2)]
    filled = [np.array([[5, 0, 6, 0, 0]]), short[1], np.pad(short[2], ((0, 0), (0, 0), (0, 3)), constant_values=7)]
    other = [np.array([[5, 0, 6, 1, 0]]), short[1], filled[2]]
    batch = [np.concatenate(arrays) for arrays in zip(filled, other, strict=True)]
    [row] = fingerprints(short, 1, fills)
    assert fingerprints(batch, 2, fills)[0] == fingerprints(filled, 1, fills)[0] == row
    assert fingerprints(batch, 2, fills)[1] != row
    assert fingerprints(filled, 1) != [row]
    ledger = CrashLedger()
    ledger.note_crash(MODEL, fingerprints(batch, 2, fills)[:1], 0.0)
    assert [verdict for verdict, _ in ledger.judge(MODEL, short, 1, LIMIT, fills)] == [Verdict.ALONE]


def test_fingerprint_without_elements_is_valid() -> None:
    assert fingerprints([np.zeros((), np.float32)], 1)
    assert fingerprints([], 1)
