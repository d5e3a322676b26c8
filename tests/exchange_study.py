"""A simulation of the exchange: records, readers and returned tickets of many tasks, without Flink.

    python -m tests.exchange_study        the table of docs/performance/006

Each sender has more work than can leave. A record takes 0.4 ms to its reader, which runs it; its ticket takes 0.2 ms
back, and its sender looks every 2 ms. Now and then a sender has an urgent record, which leaves before its others.
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple, Protocol

from anabranch.operators.core.scheduling.credits import Credits

_WAY_MS, _BACK_MS, _LOOK_MS = 0.4, 0.2, 2.0
#: Runs differ by this share of their mean.
_SPREAD = 0.4
#: Runs between urgent records of a sender, and runs per reader that a study covers.
_URGENT_EVERY, _RUNS = 37.3, {2: 4000, 10: 1000, 100: 300, 1000: 100}
#: Share of the time that is not counted.
_WARM_UP = 0.3


class Policy(Protocol):
    """What bounds the records of a sender."""

    @property
    def has_room(self) -> bool: ...
    def send(self, now_ms: float) -> tuple[int, int]: ...
    def returned(self, ticket: int, reader: int, ran_ms: float, longest_ms: float, at_ms: float) -> None: ...


class Claims:
    """Claim checks of 231 bytes, as before: 222 of them fill the arena; a channel that holds 280 looks full."""

    def __init__(self, readers: int) -> None:
        self._at_reader = [0] * readers
        self._readers: dict[int, int] = {}
        self._tickets = self._next = 0

    @property
    def has_room(self) -> bool:
        return len(self._readers) < 222

    def send(self, now_ms: float) -> tuple[int, int]:
        at = self._at_reader
        some = [(self._next + step) % len(at) for step in range(min(4, len(at)))]
        reader = min(some, key=at.__getitem__) if at[some[0]] > 280 else some[0]
        self._next = (reader + 1) % len(at)
        at[reader] += 1
        self._tickets += 1
        self._readers[self._tickets] = reader
        return self._tickets, reader

    def returned(self, ticket: int, reader: int, ran_ms: float, longest_ms: float, at_ms: float) -> None:
        self._at_reader[self._readers.pop(ticket)] -= 1


class Seen(NamedTuple):
    """Results of a study.

    Attributes:
        busy: Share of the time that readers run.
        uneven: The busiest reader over the mean.
        held: Records at a reader that takes one, with that one: mean and most.
        urgent_p50_ms: From an urgent record's arrival to its run.
    """

    busy: float
    uneven: float
    held: float
    held_most: int
    urgent_p50_ms: float
    urgent_p99_ms: float


class _Study:
    def __init__(self, tasks: int, run_ms: float, senders: int, policy: Callable[[int], Policy]) -> None:
        self._random = Random(1)
        self._run_ms = run_ms
        self._end_ms = run_ms * _RUNS[tasks]
        self._policies = [policy(sender) for sender in range(senders)]
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._queues: list[list[tuple[int, int, float | None]]] = [[] for _ in range(tasks)]
        self._is_idle = [True] * tasks
        self._urgent: list[list[float]] = [[] for _ in range(senders)]
        self._back: list[list[tuple[int, int, float, float]]] = [[] for _ in range(senders)]
        self._ran_ms = [0.0] * tasks
        self._held: list[int] = []
        self._waits_ms: list[float] = []
        for sender in range(senders):
            self._at(0.0, self._send, sender)
            self._at(self._random.random() * run_ms * _URGENT_EVERY, self._on_urgent, sender)

    def run(self) -> Seen:
        while self._events and self._events[0][0] < self._end_ms:
            now_ms, _, act, arguments = heapq.heappop(self._events)
            act(now_ms, *arguments)
        mean_ms = sum(self._ran_ms) / len(self._ran_ms)
        waits = sorted(self._waits_ms) or [0.0]
        return Seen(
            mean_ms / (self._end_ms * (1 - _WARM_UP)),
            max(self._ran_ms) / mean_ms,
            sum(self._held) / len(self._held),
            max(self._held),
            waits[len(waits) // 2],
            waits[len(waits) * 99 // 100],
        )

    def _at(self, at_ms: float, act: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ms, self._count, act, arguments))

    def _on_urgent(self, now_ms: float, sender: int) -> None:
        self._urgent[sender].append(now_ms)
        self._at(now_ms + self._run_ms * _URGENT_EVERY, self._on_urgent, sender)
        self._send(now_ms, sender)

    def _send(self, now_ms: float, sender: int) -> None:
        policy, urgent = self._policies[sender], self._urgent[sender]
        while policy.has_room:
            ticket, reader = policy.send(now_ms)
            self._at(now_ms + _WAY_MS, self._arrive, reader, sender, ticket, urgent.pop(0) if urgent else None)

    def _arrive(self, now_ms: float, reader: int, sender: int, ticket: int, since_ms: float | None) -> None:
        self._queues[reader].append((sender, ticket, since_ms))
        if self._is_idle[reader]:
            self._take(now_ms, reader)

    def _take(self, now_ms: float, reader: int) -> None:
        queue = self._queues[reader]
        self._is_idle[reader] = not queue
        if not queue:
            return
        is_counted = now_ms > self._end_ms * _WARM_UP
        took_ms = self._run_ms * (1 + _SPREAD * (self._random.random() - 0.5))
        if is_counted:
            self._held.append(len(queue))
            self._ran_ms[reader] += took_ms
        sender, ticket, since_ms = queue.pop(0)
        if is_counted and since_ms is not None:
            self._waits_ms.append(now_ms - since_ms)
        self._at(now_ms + took_ms, self._finish, reader, sender, ticket, took_ms)

    def _finish(self, now_ms: float, reader: int, sender: int, ticket: int, took_ms: float) -> None:
        if not self._back[sender]:
            self._at(now_ms + _BACK_MS + self._random.random() * _LOOK_MS, self._look, sender)
        self._back[sender].append((ticket, reader, took_ms, now_ms + _BACK_MS))
        self._take(now_ms, reader)

    def _look(self, now_ms: float, sender: int) -> None:
        for ticket, reader, took_ms, at_ms in self._back[sender]:
            self._policies[sender].returned(ticket, reader, took_ms, took_ms, at_ms)
        self._back[sender].clear()
        self._send(now_ms, sender)


def study(tasks: int, run_ms: float, senders: int, *, credit: bool = True) -> Seen:
    """Runs one study.

    Args:
        tasks: Readers, and tasks that might send.
        run_ms: Mean run of a record.
        senders: Tasks that have work to send.
        credit: False for claim checks without credits.
    """

    def policy(sender: int) -> Policy:
        return Credits(tasks, tasks, sender) if credit else Claims(tasks)

    return _Study(tasks, run_ms, senders, policy).run()


def main() -> None:
    """Prints the table."""
    print("| tasks | run | senders | | busy | uneven | held, most | urgent p50 | p99 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for tasks in _RUNS:
        for run_ms in (2.0, 20.0, 200.0):
            for senders in (tasks, 1):
                for credit in (True, False):
                    seen = study(tasks, run_ms, senders, credit=credit)
                    name = "credits" if credit else "claims"
                    cells = (
                        f"{tasks} | {run_ms:.0f} ms | {senders} | {name} | {seen.busy:.2f} | {seen.uneven:.2f}",
                        f"{seen.held:.1f}, {seen.held_most}",
                        f"{seen.urgent_p50_ms:.0f} ms | {seen.urgent_p99_ms:.0f} ms",
                    )
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
