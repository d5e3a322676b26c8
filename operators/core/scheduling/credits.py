"""Bounds the records under way from one task to the readers of one operator, and chooses their reader.

The last reader of a record returns its ticket. The window shrinks while records wait at readers, as in LEDBAT (RFC
6817). Lost tickets expire; a reader that returned none of the last ones is deaf.
"""

#: Records per reader, and their work, for which a barrier waits.
_MOST_PER_READER, _WORK_MS = 4, 60.0
SLACK_MS = 5.0
_GROWTH, _SHRINKING = 1.0, 0.5
#: Weight of the last record in averages.
_WEIGHT = 0.1
#: Life of a ticket: at first, later in runs.
_FIRST_LEASE_MS, _LEASE_RUNS, _LEAST_LEASE_MS = 10_000.0, 20.0, 5_000.0
#: Lost tickets of a deaf reader.
_DEAF_AFTER = 2


class Credits:
    """Records under way from one task to one operator.

    Args:
        readers: Tasks of the operator.
        senders: Tasks that share it.
        sender: Its index.
        hops: Tasks of all operators on the way.
        slack_ms: Usual wait at an idle reader.
    """

    def __init__(
        self, readers: int, senders: int, sender: int = 0, hops: int | None = None, slack_ms: float = SLACK_MS
    ) -> None:
        self._readers = readers
        self._slack_ms = slack_ms
        self._hops = hops or readers
        self._least = max(1.0, self._hops / senders)
        self._window = self._least + 1.0
        #: Reader, time and rows of each ticket.
        self._under_way: dict[int, tuple[int, float, int]] = {}
        self._at_reader = [0] * readers
        self._busy_until_ms = [0.0] * readers
        self._lost = [0] * readers
        self._deaf: set[int] = set()
        self._next_reader = sender * readers // senders
        self._next_ticket = 0
        self._has_shrunk = False
        #: Averages of longest run, of that for each row, and of a ticket's way.
        self.run_ms = self.row_ms = self.way_ms = 0.0
        self._lease_ms = _FIRST_LEASE_MS

    @property
    def under_way(self) -> int:
        """Number of expected tickets."""
        return len(self._under_way)

    @property
    def deaf(self) -> int:
        """Number of deaf readers."""
        return len(self._deaf)

    @property
    def has_room(self) -> bool:
        """True if a record may leave."""
        expected = len(self._under_way)
        if self._deaf:  # If all are, Flink's buffers bound them.
            if len(self._deaf) == self._readers:
                return True
            expected -= sum([self._at_reader[reader] for reader in self._deaf])
        return expected < self._window

    @property
    def _per_reader(self) -> int:
        return 1 + min(_MOST_PER_READER - 1, int(_WORK_MS / self.run_ms)) if self.run_ms > 0 else _MOST_PER_READER

    def send(self, now_ms: float, avoid: int = -1, rows: int = 1) -> tuple[int, int]:
        """Return ticket and reader of a record.

        Args:
            avoid: Not chosen, unless alone.
        """
        reader = self._choose(now_ms, avoid)
        self._next_reader = (reader + 1) % self._readers
        ticket = self._next_ticket
        self._next_ticket = (ticket + 1) & 0xFFFFFFFF
        self._under_way[ticket] = (reader, now_ms, rows)
        self._at_reader[reader] += 1
        return ticket, reader

    def wait_ms(self, now_ms: float, avoid: int = -1) -> float:
        """Predict the wait at the least busy reader."""
        return self._load(self._choose(now_ms, avoid), now_ms)

    def returned(self, ticket: int, reader: int, ran_ms: float, longest_ms: float, at_ms: float) -> None:
        """Note a returned ticket, and times of its runs."""
        if not 0 <= reader < self._readers:
            return
        self._lost[reader] = 0
        self._deaf.discard(reader)
        sent = self._under_way.get(ticket)
        if sent is None or sent[0] != reader:
            return
        del self._under_way[ticket]
        _, sent_ms, rows = sent
        self._at_reader[reader] -= 1
        weight = _WEIGHT if self.run_ms else 1.0
        self.run_ms += (longest_ms - self.run_ms) * weight
        self.row_ms += (longest_ms / rows - self.row_ms) * weight
        self.way_ms += (max(0.0, at_ms - sent_ms) - self.way_ms) * weight
        self._lease_ms = max(_LEAST_LEASE_MS, _LEASE_RUNS * max(self.run_ms, longest_ms))
        waited_ms = max(0.0, at_ms - sent_ms - ran_ms)
        others_ms = waited_ms - self._at_reader[reader] * self.run_ms - self._slack_ms
        self._busy_until_ms[reader] = at_ms + others_ms if others_ms > 0 else 0.0
        allowed_ms = (self._per_reader - 1) * self.run_ms + self._slack_ms
        if waited_ms > allowed_ms:
            self._window = max(self._least, self._window - _SHRINKING)
            self._has_shrunk = True
        else:
            most = max(self._readers * self._per_reader, self._hops + 1)
            self._window = min(most, self._window + _GROWTH / (self._window if self._has_shrunk else 1.0))

    def expire(self, now_ms: float) -> int:
        """Drop lost tickets; return their number."""
        lost = [each for each in self._under_way.items() if each[1][1] + self._lease_ms <= now_ms]
        for ticket, (reader, _, _) in lost:
            del self._under_way[ticket]
            self._at_reader[reader] -= 1
            self._lost[reader] += 1
            if self._lost[reader] >= _DEAF_AFTER:
                self._deaf.add(reader)
        return len(lost)

    def _choose(self, now_ms: float, avoid: int) -> int:
        readers = self._readers
        best, least = -1, float("inf")
        for step in range(readers):
            reader = (self._next_reader + step) % readers
            if reader != avoid or readers == 1:
                load = self._load(reader, now_ms)
                if load < least:
                    best, least = reader, load
                    if not load:
                        break
        return best

    def _load(self, reader: int, now_ms: float) -> float:
        return self._at_reader[reader] * (self.run_ms or 1.0) + max(0.0, self._busy_until_ms[reader] - now_ms)
