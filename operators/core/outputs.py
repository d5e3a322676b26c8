"""Records that leave a task."""

from typing import NamedTuple, TypeAlias


class Answer(NamedTuple):
    """Key and value for the responses topic or the reply address in `carried`."""

    key: bytes
    value: bytes
    carried: bytes = b""


class DeadLetterRecord(NamedTuple):
    """Key and value for the errors topic, with the carried headers."""

    key: bytes
    value: bytes
    carried: bytes = b""


class Shard(NamedTuple):
    """A SHARD for the exchange."""

    value: bytes


class Unit(NamedTuple):
    """A UNIT for the next stage of a model (name and version)."""

    model: tuple[str, str]
    value: bytes


class Offload(NamedTuple):
    """A BATCH for another task, which answers its requests."""

    value: bytes


class WindowPart(NamedTuple):
    """An OPENING, PARTIAL or FAILURE for the window of a request."""

    key: str
    value: bytes


Output: TypeAlias = Answer | DeadLetterRecord | Shard | Unit | Offload | WindowPart
