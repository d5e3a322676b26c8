"""Records that leave a task."""

from typing import NamedTuple, TypeAlias


class Answer(NamedTuple):
    """Key and value of a record for the responses topic."""

    key: bytes
    value: bytes


class DeadLetterRecord(NamedTuple):
    """Key and value of a record for the errors topic."""

    key: bytes
    value: bytes


class Shard(NamedTuple):
    """A SHARD record for the exchange."""

    value: bytes


class Unit(NamedTuple):
    """A UNIT record for the next stage of a model (name and version)."""

    model: tuple[str, str]
    value: bytes


class Offload(NamedTuple):
    """A BATCH for the exchange; the task that runs its requests answers them."""

    value: bytes


class WindowPart(NamedTuple):
    """An OPENING, PARTIAL or FAILURE for the window of a request, under its key."""

    key: str
    value: bytes


Output: TypeAlias = Answer | DeadLetterRecord | Shard | Unit | Offload | WindowPart
