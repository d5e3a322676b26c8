"""Registry of objects that operators share in a process.

    open()    hold = PROCESS.acquire(job, attempt)
              hold.share(key, make)                    one object per key
    close()   hold.release()                           the last holder drops it

In thread mode Flink closes operators only at the end of the input, not after failure or cancellation. So a new attempt
releases the holds of earlier ones, and of earlier executions, and a lost hold is released with a warning.
"""

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_ENDED_EXECUTIONS = 64


class Releasable(Protocol):
    """Resource of one attempt."""

    def let_go(self) -> None:
        """Drop memory and files."""


@dataclass(slots=True, eq=False)
class _Holder:
    job: str
    attempt: int
    execution: str = ""
    keys: set[Hashable] = field(default_factory=set)
    resources: list[Releasable] = field(default_factory=list)
    is_released: bool = False


@dataclass(slots=True)
class _Entry:
    value: Any
    holders: int = 0


class Hold:
    """Hold of one operator."""

    def __init__(self, holder: _Holder, process: "ProcessRuntime") -> None:
        self._holder = holder
        self._process = process

    def share(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of a key, which its first holder makes."""
        value: T = self._process.share(self._holder, key, make)
        return value

    def own(self, resource: Releasable) -> None:
        """End a resource with its attempt."""
        self._holder.resources.append(resource)

    def release(self) -> None:
        """End the hold; do nothing the second time."""
        self._process.release(self._holder)


class ProcessRuntime:
    """Counts holders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._holders: set[_Holder] = set()
        self._entries: dict[Hashable, _Entry] = {}
        self._lost: deque[_Holder] = deque()
        self._ended: deque[str] = deque(maxlen=_ENDED_EXECUTIONS)

    def holders(self, job: str) -> int:
        """Count the holds of a job."""
        with self._locked():
            return sum(holder.job == job for holder in self._holders)

    def is_shared(self, key: Hashable) -> bool:
        """Tell whether an object has holders."""
        return key in self._entries

    def acquire(self, job: str, attempt: int, execution: str = "") -> Hold:
        """Return a hold; release those of the job's earlier attempts.

        Args:
            job: Unique name of the job.
            attempt: Number of earlier starts in the execution.
            execution: Random id; another one ends all attempts of those before.
        """
        holder = _Holder(job, attempt, execution)
        hold = Hold(holder, self)
        weakref.finalize(hold, self._lose, holder).atexit = False
        with self._locked():
            others = [other for other in self._holders if other.job == job]
            earlier = [other for other in others if other.execution == execution and other.attempt < attempt]
            if execution not in self._ended:  # A task of an ended execution may open late.
                ended = [other for other in others if other.execution != execution]
                self._ended.extend({other.execution for other in ended})
                earlier += ended
            self._holders.add(holder)
        for other in earlier:
            resources = list(other.resources)
            self.release(other)
            for resource in resources:
                resource.let_go()
        return hold

    def share(self, holder: _Holder, key: Hashable, make: Callable[[], Any]) -> Any:
        """See `Hold.share`."""
        with self._making:  # Models are measured alone.
            with self._locked():
                entry = self._entries.get(key)
            if entry is None:
                entry = _Entry(make())
            with self._locked():
                if not holder.is_released and key not in holder.keys:
                    entry = self._entries.setdefault(key, entry)
                    entry.holders += 1
                    holder.keys.add(key)
            return entry.value

    def release(self, holder: _Holder) -> None:
        """See `Hold.release`."""
        dropped: list[object] = []  # Destroyed without the lock.
        with self._locked():
            if not holder.is_released:
                holder.is_released = True
                self._holders.remove(holder)
                dropped.append(holder.resources)
                holder.resources = []
                for key in holder.keys:
                    entry = self._entries[key]
                    entry.holders -= 1
                    if not entry.holders:
                        dropped.append(self._entries.pop(key))

    def _lose(self, holder: _Holder) -> None:
        if holder.is_released:
            return
        self._lost.append(holder)
        self._release_lost()
        warnings.warn(f"an operator of job {holder.job!r} was not closed", ResourceWarning, stacklevel=2)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            yield
        self._release_lost()

    def _release_lost(self) -> None:
        # Garbage collection may interrupt the lock's owner, which comes here afterwards.
        while self._lost and not self._lock.locked():
            try:
                holder = self._lost.popleft()
            except IndexError:
                return
            self.release(holder)


PROCESS = ProcessRuntime()
