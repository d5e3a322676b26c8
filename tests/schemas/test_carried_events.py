"""Carried fields of flows' events: topic in, address out, key and headers kept."""

import pytest

from anabranch.schemas.records import CarryingSource, Source
from anabranch.schemas.wire.carried import (
    EVENT,
    PARTITION_BITS,
    Carried,
    address_event,
    decode_carried,
    event_source,
    event_topic,
    flow_number,
    is_event,
)

HEADERS = (("a", b"1"), ("a", None), ("é", b""))


@pytest.mark.parametrize("key", [None, b"", b"key"])
@pytest.mark.parametrize("new_key", [None, b"", b"other"])
def test_event_address_keeps_key_and_headers(key: bytes | None, new_key: bytes | None) -> None:
    carried = Carried("payments", EVENT, key, HEADERS).encode()
    assert is_event(carried)
    assert event_topic(carried) == "payments"
    sent = decode_carried(address_event(carried, b"scored", 17, new_key))
    assert sent == Carried("17/scored", EVENT, key if new_key is None else new_key, HEADERS)


@pytest.mark.parametrize("carried", [b"", Carried("t", 3).encode(), Carried(key=b"k").encode()])
def test_event_mark_is_not_on_requests(carried: bytes) -> None:
    assert not is_event(carried)


def test_event_source_has_the_partition_of_its_topic() -> None:
    numbers = {flow_number(f"topic-{index}") for index in range(1000)}
    assert min(numbers) >= 1
    assert max(numbers) << PARTITION_BITS < 2**31
    source = CarryingSource(flow_number("payments") << PARTITION_BITS | 7, 5, 9, b"x")
    assert event_source(source) == Source(7, 5, 9)


def test_flow_number_of_a_topic_never_changes() -> None:
    # State holds it.
    assert (flow_number("payments"), flow_number("clicks")) == (12931, 7276)
