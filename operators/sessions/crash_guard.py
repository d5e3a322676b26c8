"""Guards runs of a model against rows that end its process."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anabranch.operators.backends.base import Backend, Session
from anabranch.operators.core.crash_ledger import Fills, Verdict
from anabranch.operators.sessions.run_journal import Note, RunJournal, head_bytes, journal_of
from anabranch.schemas.errors import RequestCrashesModel
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

T = TypeVar("T")


class SuspectInBatch(Exception):
    """A batch has rows that must run alone: halve it."""


@dataclass(frozen=True)
class GuardedBackend:
    """A back-end whose sessions note their runs.

    Attributes:
        folder: Folder of the notes, best on storage that all TaskManagers share; a relative one is temporary.
    """

    backend: Backend
    folder: str

    def load(self, model: ModelSpec) -> Session:
        """See `anabranch.operators.backends.base.Backend`."""
        return self.backend.load(model)

    def journal(self) -> RunJournal | None:
        """Return this process's journal, with the crashes until now."""
        return journal_of(Path(tempfile.gettempdir(), f"anabranch-crashes-{os.getuid()}", self.folder))


class CrashGuard:
    """Notes each run of a function, so that a later process knows the rows that ended this one.

    Args:
        subject: Model or function, with its version and content.
        fixed_types: True if all calls have arrays of the same datatypes.
        fills: See `fingerprints`.
    """

    def __init__(
        self, journal: RunJournal, subject: str, max_crashes: int, *, fixed_types: bool = False, fills: Fills = ()
    ) -> None:
        self._journal = journal
        self._subject = subject
        self._max_crashes = max_crashes
        self._fixed_types = fixed_types
        self._fills = fills
        self._cached: tuple[int, list[tuple[int, ...]], bytes, int] = (0, [], b"", 0)

    def call(self, arrays: Sequence[Array], units: int, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of these arrays.

        Args:
            arrays: In a fixed order.
            units: Parts of axis 0 that may run apart; 1 for all arrays together.

        Raises:
            RequestCrashesModel: The only unit has ended its process `max_crashes` times.
            SuspectInBatch: One of several units has ended its process.
        """
        if self._subject in self._journal.ledger.counts:
            return self._call_suspects(arrays, units, function, *arguments)
        return self._noted(arrays, units, function, *arguments)

    def _noted(self, arrays: Sequence[Array], units: int, function: Callable[..., T], *arguments: Any) -> T:
        note = self._begin(arrays, units)
        try:
            return function(*arguments)
        finally:
            if note is not None:
                self._journal.end(note)

    def _begin(self, arrays: Sequence[Array], units: int) -> Note | None:
        try:
            shapes = [array.shape for array in arrays]
            cached_units, cached_shapes, head, size_bytes = self._cached
            if cached_shapes != shapes or cached_units != units or not self._fixed_types:
                head, following, size_bytes = head_bytes(self._subject, arrays, units, self._max_crashes, self._fills)
                if not following:
                    return self._journal.begin(head, following, size_bytes)
                self._cached = units, shapes, head, size_bytes
            return self._journal.begin(head, arrays, size_bytes)
        except Exception:  # noqa: BLE001 - a full disk must not fail the run
            if all(array.flags.c_contiguous for array in arrays):
                return None
        return self._begin([np.ascontiguousarray(array) for array in arrays], units)

    def _call_suspects(self, arrays: Sequence[Array], units: int, function: Callable[..., T], *arguments: Any) -> T:
        journal, limit = self._journal, self._max_crashes
        try:
            verdict, digest = max(journal.ledger.judge(self._subject, arrays, units, limit, self._fills))
        except Exception:  # noqa: BLE001 - a function may take objects that cannot be noted
            verdict, digest = Verdict.FREE, ""
        if verdict is Verdict.FREE:
            return self._noted(arrays, units, function, *arguments)
        if units > 1:
            raise SuspectInBatch
        if verdict is Verdict.REFUSED:
            raise RequestCrashesModel(
                f"the process ended in {limit} runs of {self._subject} on these rows: correct them or the model, "
                "or raise max_crashes under [session] in its model.toml"
            )
        with journal.alone():
            try:
                return self._noted(arrays, units, function, *arguments)
            finally:
                journal.forget(self._subject, digest)
