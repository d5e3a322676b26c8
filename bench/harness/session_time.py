"""A back-end that records session times, and can slow one process down.

    folder/PID.busy     seconds in sessions, a double        folder/slow     the process that is slowed down: its id

Batches of zeros (calibration and warm-up) are neither recorded nor slowed down.
"""

import mmap
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

from anabranch.operators.backends.base import Session
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.schemas.model import ModelSpec
from anabranch.schemas.tensors import Array

_SECONDS = struct.Struct("<d")


@dataclass(frozen=True)
class BusyBackend:
    """ONNX Runtime with recorded session times.

    Attributes:
        folder: Folder of the times.
        slowdown: Runs of each batch in the first process that loads a model.
    """

    folder: str
    slowdown: int = 1

    def load(self, model: ModelSpec) -> Session:
        """See `anabranch.operators.backends.base.Backend`."""
        runs = self.slowdown if _is_first(self.folder) else 1
        return BusySession(OnnxBackend().load(model), _clock_of(self.folder), runs)


class BusySession:
    """A recorded session; see `anabranch.operators.backends.base.Session`."""

    def __init__(self, session: Session, clock: "BusyClock", runs: int) -> None:
        self._session = session
        self._clock = clock
        self._runs = runs

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Run a batch, as often as the process is slow."""
        if not any(array.any() for array in inputs.values()):
            return self._session.run(outputs, inputs)
        start_s = perf_counter()
        for _ in range(self._runs - 1):
            self._session.run(outputs, inputs)
        results = self._session.run(outputs, inputs)
        self._clock.add(perf_counter() - start_s)
        return results


class BusyClock:
    """Sums up seconds in a file, which outlives a killed process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(_SECONDS.pack(0.0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._lock = threading.Lock()
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Add seconds; operators of a task are several threads."""
        with self._lock:
            self._seconds += seconds
            _SECONDS.pack_into(self._map, 0, self._seconds)


def read_busy_s(folder: Path) -> list[float]:
    """Session seconds of each process, ascending."""
    return sorted(_SECONDS.unpack(path.read_bytes())[0] for path in folder.glob("*.busy"))


@cache
def _clock_of(folder: str) -> BusyClock:
    return BusyClock(Path(folder) / f"{os.getpid()}.busy")


@cache
def _is_first(folder: str) -> bool:
    path = Path(folder) / "slow"
    try:
        with path.open("x") as file:
            file.write(f"{os.getpid()}")
    except FileExistsError:
        return False
    return True
