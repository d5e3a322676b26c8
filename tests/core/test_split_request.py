"""SplitRequest: records of a queued request that leave one by one."""

from typing import Any

import pytest

from anabranch.operators.core.outputs import Shard
from anabranch.operators.core.scheduling.split_request import SplitRequest


class Readers:
    """A gate that a test opens and closes."""

    has_room = True


def opening(now_ms: float) -> Shard:
    return Shard(f"opened at {now_ms}".encode())


def test_split_request_opening_leaves_with_the_first_record() -> None:
    split = SplitRequest(
        "exchange", 2, 1, None, opening, lambda now_ms: iter([(None, lambda: Shard(b"1")), (None, lambda: Shard(b"2"))])
    )
    assert (split.has_begun, split.is_done, split.has_room) == (False, False, True)
    assert split.advance(5.0) == [Shard(b"opened at 5.0"), Shard(b"1")]
    assert (split.has_begun, split.is_done) == (True, False)
    assert split.advance(6.0) == [Shard(b"2")]
    assert split.is_done


def test_split_request_that_has_begun_sends_no_opening() -> None:
    split = SplitRequest("exchange", 1, 1, None, opening, lambda _: iter([(None, lambda: Shard(b"1"))]))
    split.has_begun = True
    assert split.advance(5.0) == [Shard(b"1")]
    assert split.is_done


def test_split_request_waits_for_room_at_each_reader() -> None:
    first, second = Readers(), Readers()
    parts: Any = iter([(first, lambda: Shard(b"1")), (second, lambda: Shard(b"2"))])
    split = SplitRequest("exchange", 2, 1, first, opening, lambda _: parts)
    seen = []
    for at_first, at_second in ((False, True), (True, False)):
        first.has_room, second.has_room = at_first, at_second
        seen.append(split.has_room)
    split.advance(0.0)
    seen.append(split.has_room)
    assert seen == [False, True, False]


def test_split_request_failed_record_leaves_it_unopened() -> None:
    def fail() -> Any:
        raise RuntimeError("defect")

    split = SplitRequest("exchange", 1, 1, None, opening, lambda _: iter([(None, fail)]))
    with pytest.raises(RuntimeError):
        split.advance(0.0)
    assert not split.has_begun
