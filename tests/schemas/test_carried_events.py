"""Carried fields of flows' events: topic in, address out, key and headers kept."""

from itertools import product

import pytest

from anabranch.schemas.records import CarryingSource, Source
from anabranch.schemas.wire.carried import (
    EVENT,
    PARTITION_BITS,
    Addresses,
    Carried,
    address_event,
    decode_carried,
    event_source,
    event_topic,
    flow_number,
    is_event,
    is_of_one_topic,
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


def test_addresses_of_many_events_equal_those_of_each() -> None:
    address = Addresses(b"scored").of
    for topic, key, timestamp_ms, headers in product(
        ("payments", "payment", "s"), (None, b"", b"k", b"other"), (-1, 7, 8), ((), HEADERS)
    ):
        carried = Carried(topic, EVENT, key, headers).encode()
        for _ in range(2):
            assert address(carried, timestamp_ms) == address_event(carried, b"scored", timestamp_ms, None)


def test_events_of_one_topic_are_told_from_others() -> None:
    events = [Carried("payments", EVENT, key, HEADERS).encode() for key in (None, b"k", b"key")]
    assert is_of_one_topic(events)
    for other in (Carried("payment5", EVENT), Carried("payments2", EVENT), Carried("payments"), Carried("pay", EVENT)):
        assert not is_of_one_topic([*events, other.encode()])
        assert not is_of_one_topic([other.encode(), *events])
    assert not is_of_one_topic([b""])


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
