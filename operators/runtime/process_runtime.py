"""Registry of the objects that operators share in one Python process.

In thread mode all tasks of a TaskManager run in one process; in process mode the operators of a slot may.

    open()    hold = PROCESS.acquire(job, attempt)
              hold.share(key, make)                    counts a holder of `key`
    close()   hold.release()                           the last holder drops the object

In thread mode Flink closes operators at the end of the input, but not after a failure or a cancellation. So a new
attempt of a job releases the holds of earlier ones, and a hold that is dropped unreleased is released with a warning.
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


class Releasable(Protocol):
    """A resource that ends with its attempt, although Flink may reference its operator for longer."""

    def let_go(self) -> None:
        """Drops the memory and files of the resource."""


@dataclass(slots=True, eq=False)
class _Holder:
    job: str
    attempt: int
    keys: set[Hashable] = field(default_factory=set)
    resources: list[Releasable] = field(default_factory=list)
    is_released: bool = False


@dataclass(slots=True)
class _Entry:
    value: Any
    holders: int = 0


class Hold:
    """One operator's part in a `ProcessRuntime`."""

    def __init__(self, holder: _Holder, process: "ProcessRuntime") -> None:
        self._holder = holder
        self._process = process

    def share(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the object of a key; the first holder makes it."""
        value: T = self._process.share(self._holder, key, make)
        return value

    def own(self, resource: Releasable) -> None:
        """Ends a resource when a later attempt starts."""
        self._holder.resources.append(resource)

    def release(self) -> None:
        """Ends the hold; has no effect after the first time, or after a later attempt started."""
        self._process.release(self._holder)


class ProcessRuntime:
    """Counts the holders of shared objects."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._holders: set[_Holder] = set()
        self._entries: dict[Hashable, _Entry] = {}
        self._lost: deque[_Holder] = deque()

    def holders(self, job: str) -> int:
        """Counts the holds of a job."""
        with self._locked():
            return sum(holder.job == job for holder in self._holders)

    def is_shared(self, key: Hashable) -> bool:
        """Tells whether an object has holders."""
        return key in self._entries

    def acquire(self, job: str, attempt: int) -> Hold:
        """Returns a hold for one operator; releases those of the job's earlier attempts.

        Args:
            job: Unique name of the job.
            attempt: Number of earlier starts.
        """
        holder = _Holder(job, attempt)
        hold = Hold(holder, self)
        weakref.finalize(hold, self._lose, holder).atexit = False
        with self._locked():
            earlier = [other for other in self._holders if other.job == job and other.attempt < attempt]
            self._holders.add(holder)
        for other in earlier:
            resources = list(other.resources)
            self.release(other)
            for resource in resources:
                resource.let_go()
        return hold

    def share(self, holder: _Holder, key: Hashable, make: Callable[[], Any]) -> Any:
        """See `Hold.share`."""
        with self._making:  # One at a time: `make` may measure a model's speed.
            with self._locked():
                entry = self._entries.get(key)
            if entry is None:
                entry = _Entry(make())
            with self._locked():
                # The attempt may have ended meanwhile, and with it the other holders.
                if not holder.is_released and key not in holder.keys:
                    entry = self._entries.setdefault(key, entry)
                    entry.holders += 1
                    holder.keys.add(key)
            return entry.value

    def release(self, holder: _Holder) -> None:
        """See `Hold.release`."""
        dropped: list[object] = []  # Destructors run after the lock is free.
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
        # The garbage collector may run in the thread that has the lock; `_locked` comes here afterwards.
        while self._lost and not self._lock.locked():
            try:
                holder = self._lost.popleft()
            except IndexError:  # Another thread took it.
                return
            self.release(holder)


#: The registry of this process.
PROCESS = ProcessRuntime()
