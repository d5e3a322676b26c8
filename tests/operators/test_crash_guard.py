"""CrashGuard and RunJournal: processes that end in a run leave a note, and later ones act on it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from anabranch.operators.core.crash_ledger import CrashLedger
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.batch_run import PartRows, run_batch
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.sessions import run_journal
from anabranch.operators.sessions.crash_guard import CrashGuard, SuspectInBatch
from anabranch.operators.sessions.run_journal import RunJournal, journal_of
from anabranch.operators.sessions.session_pool import MeasuredSession
from anabranch.schemas.errors import RequestCrashesModel
from anabranch.schemas.model import ModelSpec, TensorSpec
from anabranch.schemas.signatures import Signature, TensorSignature
from anabranch.schemas.tensors import Array

SUBJECT, LIMIT = "m/1 abc", 3
GOOD, POISON = np.zeros((1, 4), np.float32), np.full((1, 4), 13, np.float32)
#: A process that ends in a run of the array in a file.
CRASH = """
import os, signal, sys
from pathlib import Path
import numpy as np
from anabranch.operators.sessions.crash_guard import CrashGuard
from anabranch.operators.sessions.run_journal import RunJournal
journal = RunJournal(Path(sys.argv[1]))
journal.refresh()
rows = np.load(sys.argv[2], allow_pickle=True)
guard = CrashGuard(journal, sys.argv[3], 3)
end = os.kill, os.getpid(), signal.SIGKILL
if sys.argv[4:]:
    guard.call([rows], len(rows), lambda: None)
    end[0](*end[1:])
guard.call([rows], len(rows), *end)
"""


def crash(folder: Path, rows: Array, *after: str) -> None:
    """Ends a process in a run of these rows, or after it."""
    file = folder.with_suffix(".npy")
    np.save(file, rows)
    ended = subprocess.run([sys.executable, "-c", CRASH, str(folder), str(file), SUBJECT, *after], check=False)
    assert ended.returncode == -signal.SIGKILL


def opened(folder: Path) -> RunJournal:
    journal = RunJournal(folder)
    journal.refresh()
    return journal


def crashes_of(journal: RunJournal) -> list[int]:
    return [count.crashes for counts in journal.ledger.counts.values() for count in counts.values()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "crashes"


def test_run_that_ended_its_process_is_counted_once(folder: Path) -> None:
    crash(folder, np.concatenate([GOOD, POISON]))
    assert crashes_of(opened(folder)) == [1, 1]
    assert crashes_of(opened(folder)) == [1, 1]
    assert not list(folder.glob("run-*"))


def test_run_of_texts_that_ended_its_process_is_counted(folder: Path) -> None:
    rows = np.array([[b"a"], ["bc"]], dtype=object)
    crash(folder, rows)
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    with pytest.raises(SuspectInBatch):
        guard.call([rows], 2, len, "")
    assert guard.call([np.array([[b"other"], [b"b"]], dtype=object)], 2, len, "") == 0


def test_run_under_way_in_a_living_process_is_not_counted(folder: Path) -> None:
    journal = opened(folder)
    CrashGuard(journal, SUBJECT, LIMIT).call([POISON], 1, lambda: opened(folder).refresh())
    assert crashes_of(opened(folder)) == []
    journal.refresh()
    assert crashes_of(journal) == []


def test_run_that_ended_or_failed_leaves_no_crash(folder: Path) -> None:
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    with pytest.raises(ZeroDivisionError):
        guard.call([POISON], 1, lambda: 1 / 0)
    crash(folder, GOOD, "after")
    assert crashes_of(opened(folder)) == []
    crash(folder, GOOD)
    assert crashes_of(opened(folder)) == [1]


@pytest.mark.slow
def test_rows_that_end_their_process_are_refused_at_the_limit(folder: Path) -> None:
    for crashes in range(LIMIT):
        guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
        if crashes:
            with pytest.raises(SuspectInBatch):
                guard.call([np.concatenate([GOOD, POISON])], 2, len, "")
        crash(folder, POISON)
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    with pytest.raises(RequestCrashesModel, match="ended in 3 runs"):
        guard.call([POISON], 1, os.abort)
    assert guard.call([GOOD], 1, len, "") == 0
    other = CrashGuard(opened(folder), "m/2 def", LIMIT)
    assert other.call([POISON], 1, len, "") == 0


def test_suspect_that_survives_alone_runs_in_batches_again(folder: Path) -> None:
    crash(folder, GOOD)
    journal = opened(folder)
    guard = CrashGuard(journal, SUBJECT, LIMIT)
    assert guard.call([GOOD], 1, len, "") == 0
    assert guard.call([np.concatenate([GOOD, GOOD])], 2, len, "") == 0
    assert crashes_of(opened(folder)) == []


@pytest.mark.slow
def test_suspects_of_two_processes_run_one_at_a_time(folder: Path) -> None:
    crash(folder, np.concatenate([GOOD, POISON]))
    one, other = (CrashGuard(opened(folder), SUBJECT, LIMIT) for _ in range(2))
    inside, done = threading.Event(), threading.Event()
    second = threading.Thread(target=lambda: other.call([POISON], 1, done.set))

    def first() -> bool:
        second.start()
        inside.set()
        return done.wait(0.2)

    assert not one.call([GOOD], 1, first)
    second.join()
    assert done.is_set()


@pytest.mark.slow
def test_batch_with_a_row_that_crashes_answers_the_others(folder: Path) -> None:
    for _ in range(LIMIT):
        crash(folder, POISON)
    rows = np.concatenate([GOOD, POISON, GOOD + 1])
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    session = MeasuredSession(_Echo(), BatchCostModel(), batchable=True, guard=guard, unit_rows=1)
    model = ModelSpec("m", "1", "", "", (TensorSpec("x", "FP32", (None, 4)),), (TensorSpec("y", "FP32", (None, 4)),))
    batch = run_batch(
        [PartRows(1, [row.tobytes()]) for row in rows],
        Signature("m", "1", (TensorSignature("x", "FP32", (4,)),), ("y",)),
        model,
        session,
        lambda: 0.0,
        Defects(Meter()),
    )
    outcomes = batch.outcomes()
    assert [len(each.good) for each in outcomes] == [1, 0, 1]
    assert outcomes[1].bad[0].code == RequestCrashesModel.code


class _Echo:
    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        del outputs
        return list(inputs.values())


@pytest.mark.parametrize("array", [np.zeros((2, 100_000), np.float32), np.zeros((4, 2), np.float32).T, np.float32(3)])
def test_inputs_of_any_size_and_layout_are_noted(folder: Path, array: Array) -> None:
    journal = opened(folder)
    guard = CrashGuard(journal, SUBJECT, LIMIT)
    noted = guard.call([GOOD, np.asarray(array)], 1, lambda: _note_of(folder))
    [count] = _counted(noted).counts[SUBJECT].values()
    assert count.crashes == 1


def test_filled_row_that_crashed_is_known_at_any_length(folder: Path) -> None:
    ids = np.array([[5, 6, 0, 0]])
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT, fixed_types=True, fills=[(1, 0.0)])
    noted = guard.call([ids], 1, lambda: _note_of(folder))
    ledger = _counted(noted)
    assert [digest for _, digest in ledger.judge(SUBJECT, [ids[:, :2]], 1, LIMIT, [(1, 0.0)])] == [
        *ledger.counts[SUBJECT]
    ]


def test_larger_inputs_than_copied_are_noted_by_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    copied = guard.call([POISON], 1, lambda: _note_of(folder))
    monkeypatch.setattr(run_journal, "_MOST_COPIED_BYTES", 8)
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    digested = guard.call([POISON], 1, lambda: _note_of(folder, newest=True))
    assert _counted(copied).counts[SUBJECT].keys() == _counted(digested).counts[SUBJECT].keys()
    assert len(digested.rstrip(b"\0")) != len(copied.rstrip(b"\0"))


def _note_of(folder: Path, *, newest: bool = False) -> bytes:
    paths = sorted(folder.glob("run-*"), key=lambda path: path.stat().st_mtime_ns)
    return paths[-1 if newest else 0].read_bytes()


def _counted(note: bytes) -> CrashLedger:
    ledger = CrashLedger()
    run_journal._count(note, ledger)
    return ledger


def test_damaged_note_is_dropped(folder: Path) -> None:
    opened(folder)
    (folder / "run-1").write_bytes(b"\1\0\0\0\xff\0\0\0garbage")
    (folder / "run-2").write_bytes(b"")
    (folder / "ledger.json").write_bytes(b"{")
    assert crashes_of(opened(folder)) == []
    assert not list(folder.glob("run-*"))


def test_full_disk_leaves_runs_unguarded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    crash(folder, POISON)
    guard = CrashGuard(opened(folder), SUBJECT, LIMIT)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert guard.call([GOOD], 1, len, "") == 0
    assert not list(folder.glob("*run-*"))
    monkeypatch.setattr(os, "open", full)
    assert guard.call([POISON], 1, len, "") == 0
    monkeypatch.setattr(run_journal, "_REFRESH_S", 0)
    run_journal._journals[folder] = guard._journal
    assert journal_of(folder) is guard._journal


def test_objects_that_cannot_be_noted_run_unguarded(folder: Path) -> None:
    crash(folder, GOOD)
    for rows in (np.array([object()]), np.array(["2026-11-29"], "datetime64[D]")):
        assert CrashGuard(opened(folder), SUBJECT, LIMIT).call([rows], 1, len, "") == 0
        assert CrashGuard(opened(folder), "m/2 def", LIMIT).call([rows], 1, len, "") == 0


def test_operators_that_open_together_read_the_notes_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_of(folder)
    assert journal is not None
    crash(folder, POISON)
    monkeypatch.setattr(run_journal, "_REFRESH_S", 1000)
    journal_of(folder)
    assert crashes_of(journal) == []
    monkeypatch.setattr(run_journal, "_REFRESH_S", 0)
    journal_of(folder)
    assert crashes_of(journal) == [1]


def test_unusable_folder_gives_no_journal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert journal_of(tmp_path / "file" / "crashes") is None
    assert journal_of(tmp_path / "crashes") is journal_of(tmp_path / "crashes")
