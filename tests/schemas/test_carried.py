"""Carried fields round-trip, have the bytes of Java, and reply addresses are checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.errors import ReplyRefused
from anabranch.schemas.limits import MAX_REPLY_TOPICS
from anabranch.schemas.wire.carried import Carried, ReplyTopics, decode_carried, without_address

texts = st.text(max_size=10)
fields = st.builds(
    Carried,
    texts,
    st.integers(-2, 2**31 - 1),
    st.none() | st.binary(max_size=10),
    st.lists(st.tuples(texts, st.none() | st.binary(max_size=10)), max_size=4).map(tuple),
)


@given(fields)
def test_carried_any_fields_round_trip_in_order(carried: Carried) -> None:
    assert decode_carried(carried.encode()) == carried


@given(fields)
def test_without_address_keeps_key_and_headers(carried: Carried) -> None:
    assert decode_carried(without_address(carried.encode())) == Carried("", -1, carried.key, carried.headers)


def test_carried_sample_has_the_layout_of_java() -> None:
    sample = Carried("to", 258, b"key", (("a", b"bc"), ("d", None)))
    assert sample.encode() == (
        b"\x02\x01\x00\x00" b"\x02\x00" b"\x03\x00\x00\x00" b"to" b"key"
        b"\x01\x00" b"\x02\x00\x00\x00" b"a" b"bc"
        b"\x01\x00" b"\xff\xff\xff\xff" b"d"
    )  # fmt: skip


def test_carried_nothing_is_decoded_as_defaults() -> None:
    assert decode_carried(b"") == Carried()


@pytest.mark.parametrize("topic", ["", "mine", "replies-1", "replies-"])
def test_reply_topics_allowed_name_passes_twice(topic: str) -> None:
    topics = ReplyTopics(["mine", "replies-*"])
    for partition in (-1, 0, 7):
        topics.check(Carried(topic, partition).encode())


@pytest.mark.parametrize("topic", ["mine2", "replies", "inference-requests", "*", "ü"])
def test_reply_topics_other_name_is_refused(topic: str) -> None:
    topics = ReplyTopics(["mine", "replies-*"])
    for _ in range(2):
        with pytest.raises(ReplyRefused, match="expected one of mine, replies-\\*"):
            topics.check(Carried(topic).encode())


def test_reply_topics_unreadable_partition_is_refused() -> None:
    with pytest.raises(ReplyRefused, match="unreadable"):
        ReplyTopics(["*"]).check(Carried("mine", -2).encode())


def test_reply_topics_many_names_take_bounded_memory() -> None:
    topics = ReplyTopics(["*"])
    for number in range(2 * MAX_REPLY_TOPICS):
        topics.check(Carried(f"topic-{number}").encode())
    assert len(topics._seen) == MAX_REPLY_TOPICS
