"""Samples of a process's memory while requests are answered."""

from threading import Event, Thread
from typing import Self

from anabranch.stack.processes import LocalProcess
from bench.harness.accounting import resident_mb
from bench.harness.environment import BenchEnvironment

_SAMPLE_INTERVAL_S = 1.0


class Sampler:
    """Samples a process's memory and its answers every second of a `with` block."""

    def __init__(self, environment: BenchEnvironment, process: LocalProcess, topic: str, answered_before: int) -> None:
        self._environment = environment
        self._process = process
        self._topic = topic
        self._answered_before = answered_before
        self._stopped = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self.answered: list[int] = []
        self.resident_mb: list[float] = []

    def __enter__(self) -> Self:
        """Start to note."""
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Note a last time."""
        self._stopped.set()
        self._thread.join()
        self._note()

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLE_INTERVAL_S):
            self._note()

    def _note(self) -> None:
        self.answered.append(sum(self._environment.end_offsets(self._topic)) - self._answered_before)
        self.resident_mb.append(resident_mb(self._process.pid))
