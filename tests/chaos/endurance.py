"""Memory and checkpoint size over a million split requests, on the classes of the core that Flink drives.

frames --> [ TaskLoop ] -- shards --> [ InferenceTask ] -- partials --> [ Aggregator ] --> answers, counted
               queued state                                            windows, timers: the checkpoint

One request in a hundred has a deadline that passes before its parts come, so that its window must be remembered.

`python -m tests.chaos.endurance` prints one line for each slice and writes `results/endurance.json`.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import psutil

from anabranch.operators.core.outputs import Answer, DeadLetterRecord, Offload, Output, Shard, Unit
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.schemas.frames import write_requests
from anabranch.schemas.model import Batching
from anabranch.schemas.records import Source
from bench.harness.analysis.measures import fit_line
from tests.core.models import catalog
from tests.oracle import Sent
from tests.simulator import Faults, Simulation

RESULT = Path(__file__).parent / "results" / "endurance.json"
#: A planted defect: windows are answered and never forgotten.
Leak = Literal["none", "windows"]

FRAME = 64
ROWS = 8
REMEMBER_MS = 20_000
EVERY_WITH_DEADLINE = 100
#: Growth from which a run is not flat, over the whole run and as a part of the first slice.
MAX_GROWTH_MB = 16.0
MAX_GROWTH = 0.2


class EnduranceSlice(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements at the end of a slice.

    Attributes:
        requests: Requests since the start of the run.
        checkpoint_bytes: Queued requests, windows and the records that windows keep; the largest of the slice.
        windows: Windows, the most of the slice.
        timers: Timers of windows, the most of the slice.
        memory_mb: Resident memory of the process.
    """

    requests: int
    answers: int
    seconds: float
    checkpoint_bytes: int
    windows: int
    timers: int
    memory_mb: float


class EnduranceResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run."""

    slices: list[EnduranceSlice]
    leak: Leak = "none"

    def growth(self) -> dict[str, float]:
        """Returns the growth from the second slice to the end, by a fitted line.

        `memory_mb` is in MB, all others are parts of their size after the second slice.
        """
        settled = self.slices[1:]
        requests = np.array([each.requests for each in settled], dtype=np.float64)
        grown: dict[str, float] = {}
        for name in ("checkpoint_bytes", "windows", "timers", "memory_mb"):
            sizes = np.array([getattr(each, name) for each in settled], dtype=np.float64)
            growth = fit_line(requests, sizes).slope * float(requests[-1] - requests[0])
            grown[name] = growth if name == "memory_mb" else growth / max(1.0, sizes[0])
        return grown

    def is_flat(self) -> bool:
        """Returns whether neither memory nor checkpoints grow."""
        grown = self.growth()
        return grown.pop("memory_mb") <= MAX_GROWTH_MB and all(each <= MAX_GROWTH for each in grown.values())


class _Forgetful(dict[str, set[int]]):
    """The simulator's notes of rows, which it needs for checks that this run does without."""

    def setdefault(self, key: str, default: set[int] | None = None) -> set[int]:
        return set()


class SplitStream(Simulation):
    """A simulated task and its windows under an endless stream of split requests."""

    def __init__(self, leak: Leak = "none") -> None:
        served = catalog(Batching(shard_rows=4, max_rows=8), without=("cut", "rows", "whole"))
        super().__init__([], served, seed=0, faults=Faults(0, 0, 0), credits=False)
        self.offloads = self.refuses = self.crowds = False
        self.policy = SchedulingPolicy(balance="off", remember_ms=REMEMBER_MS)
        self.answers = 0
        self.most: dict[str, int] = {}
        self._leak = leak
        self.state.arrived = _Forgetful()
        self._start(tasks=1)

    def feed(self, numbers: range) -> None:
        """Sends requests and runs all that follows from them."""
        requests = [
            Sent(
                str(number),
                "pairs",
                tuple(float(number % 1000 + row) for row in range(ROWS)),
                timestamp_ms=int(self.now_ms),
                partial=True,
                timeout_ms=1 if number % EVERY_WITH_DEADLINE == 0 else None,
            )
            for number in numbers
        ]
        frame = [
            (request.encode(), Source(0, number, request.timestamp_ms))
            for number, request in zip(numbers, requests, strict=True)
        ]
        self._take(self._tasks[0].process(write_requests(frame)))
        self._note()
        while self.state.flying or self.state.queue_timers:
            if self.state.flying:
                # Time passes, so that deadlines come before the last parts.
                self.now_ms += 0.5
                self._fly()
                if len(self.state.flying) == FRAME:
                    self._note()
            else:
                self.now_ms = max(self.now_ms, min(self.state.queue_timers)[0])
                self._fire()
        assert not any(self.state.waiting.values()), "requests wait without a timer"
        self.now_ms += FRAME
        self._fire_windows()

    def _fire_windows(self) -> None:
        due = [key for key, at_ms in self.state.window_timers.items() if at_ms <= self.now_ms]
        for key in due:
            at_ms = self.state.window_timers.pop(key)
            update = self._aggregator.on_timer(at_ms, self.state.windows.get(key), self._kept_by(key))
            self._apply(key, update)

    def checkpoint_bytes(self) -> int:
        """Size of the state that a checkpoint would hold."""
        state = self.state
        queued: Iterable[Mapping[int, bytes]] = state.waiting.values()
        kept = sum(len(value) for values in state.kept.values() for value in values)
        return (
            kept
            + sum(len(key) + len(value) for key, value in state.windows.items())
            + sum(len(value) for each in queued for value in each.values())
        )

    def _note(self) -> None:
        state = self.state
        now = {
            "checkpoint_bytes": self.checkpoint_bytes(),
            "windows": len(state.windows),
            "timers": len(state.window_timers),
        }
        self.most = {name: max(size, self.most.get(name, 0)) for name, size in now.items()}

    def _take(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, Answer | DeadLetterRecord):
                self._emit(output)
            else:
                assert not isinstance(output, Unit | Offload)
                self.state.flying.append(output)

    def _fly(self) -> None:
        record = self.state.flying.pop(0)
        if isinstance(record, Shard):
            self._take(self._tasks[0].inference.on_exchange(record.value, self.now_ms))
            return
        assert not isinstance(record, Unit | Offload)
        snapshot = self.state.windows.get(record.key)
        self._apply(record.key, self._aggregator.on_record(record.value, snapshot, self._kept_by(record.key)))

    def _emit(self, output: Answer | DeadLetterRecord) -> None:
        self.answers += isinstance(output, Answer)

    def _apply(self, key: str, update: object) -> None:
        before = dict(self.state.windows) if self._leak == "windows" else {}
        super()._apply(key, update)  # type: ignore[arg-type]
        self.state.forgotten.clear()
        if key in before and key not in self.state.windows:
            self.state.kept[f"leaked {key}"] = [before[key]]


def run(requests: int, slices: int, leak: Leak = "none", *, tell: bool = True) -> EnduranceResult:
    """Runs split requests in slices of equal size."""
    stream, process, done, measured = SplitStream(leak), psutil.Process(), 0, list[EnduranceSlice]()
    for number in range(1, slices + 1):
        stream.most, start_s = {}, time.monotonic()
        while done < requests * number // slices:
            stream.feed(range(done, done + FRAME))
            done += FRAME
        gc.collect()
        measured.append(
            EnduranceSlice(
                requests=done,
                answers=stream.answers,
                seconds=round(time.monotonic() - start_s, 1),
                memory_mb=round(process.memory_info().rss / 2**20, 1),
                **stream.most,
            )
        )
        if tell:
            print(msgspec.json.encode(measured[-1]).decode(), flush=True)
    return EnduranceResult(slices=measured, leak=leak)


def main() -> int:
    """Measures, writes the result and compares it with the limits."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.endurance", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--leak", choices=("none", "windows"), default="none", help="a defect that must be found")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    arguments = parser.parse_args()
    result = run(arguments.requests, arguments.slices, arguments.leak)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    print(f"growth over the run: {result.growth()}: {'flat' if result.is_flat() else 'NOT FLAT'}")
    return int(not result.is_flat())


if __name__ == "__main__":
    sys.exit(main())
