"""Sender and receiver in one process, through shared memory and messages."""

import gc
import os
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.transport.claim_check import TransportOptions, is_claim
from anabranch.operators.runtime.process_runtime import ProcessRuntime
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport import endpoints as exchange
from anabranch.operators.transport import memfd_arena as shared_memory
from anabranch.operators.transport.endpoints import Receiver, Sender
from anabranch.operators.transport.memfd_arena import SegmentGone
from anabranch.schemas.errors import ExchangeFailed
from anabranch.schemas.records import FailureRecord, OpeningRecord, RecordKind, Segment, ShardRecord, Source, kind_of
from anabranch.schemas.signatures import Signature, encode_signature
from anabranch.schemas.tensors import Buffer
from tests.arenas import arenas

SIGNATURE = encode_signature(Signature("m", "1", (), ()))
NEVER = TaskContext(0, 1, 0)


def options(*, shares_memory: bool = True, arena_bytes: int = 1 << 20) -> TransportOptions:
    job = os.urandom(8).hex()
    return TransportOptions(job=job, shares_memory=shares_memory, claim_from_bytes=1000, arena_bytes=arena_bytes)


def shard(*tensors: Buffer, first_row: int = 0) -> ShardRecord:
    return ShardRecord(Segment(Source(0, 1, 2), "a", first_row=first_row), SIGNATURE, tensors)


def sent(message: bytes, receiver: Receiver) -> ShardRecord:
    return ShardRecord.decode(receiver.redeem(message))


def failed(message: bytes, receiver: Receiver) -> FailureRecord:
    return FailureRecord.decode(receiver.redeem(message))


def test_pack_claims_large_records_only() -> None:
    meter, chosen = Meter(), options()
    receiver, sender = Receiver(chosen, NEVER, "infer", meter), Sender(chosen, NEVER, "infer", 1, meter)
    for size in (0, 800, 1000, 100_000):
        record = shard(os.urandom(size), b"tail")
        message = sender.pack(record)
        assert is_claim(message) == (size >= 1000)
        redeemed = sent(message, receiver)
        assert [bytes(tensor) for tensor in redeemed.tensors] == list(record.tensors)
        assert redeemed.segment == record.segment
    counted = meter.drain()
    assert counted.pop(("exchange", "claimed_bytes")) > 101_000
    assert counted == {("exchange", "claims"): 2}


def test_pack_claims_an_opening_with_its_original() -> None:
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "a", Meter()), Sender(chosen, NEVER, "a", 1, Meter())
    record = OpeningRecord(Segment(Source(0, 1, 2), "a"), SIGNATURE, original=bytes(100_000))
    message = sender.pack(record)
    assert is_claim(message)
    assert len(OpeningRecord.decode(receiver.redeem(message)).original) == 100_000


@settings(deadline=None)
@given(st.lists(st.integers(0, 300_000), max_size=30), st.integers(0, 2**32))
def test_redeem_in_any_order_returns_the_sent_records(sizes: list[int], seed: int) -> None:
    chance = Random(seed)
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    under_way: list[tuple[bytes, bytes]] = []
    held: list[tuple[Sequence[Buffer], bytes]] = []
    for size in sizes:
        data = chance.randbytes(size)
        under_way.append((sender.pack(shard(data)), data))
        while under_way and chance.random() < 0.5:
            message, expected = under_way.pop(chance.randrange(len(under_way)))
            held.append((sent(message, receiver).tensors, expected))
        while held and chance.random() < 0.4:
            tensors, expected = held.pop(chance.randrange(len(held)))
            assert bytes(tensors[0]) == expected
    for message, expected in under_way:
        held.append((sent(message, receiver).tensors, expected))
    for tensors, expected in held:
        assert bytes(tensors[0]) == expected


def test_memory_is_reused_after_the_last_view_is_dropped() -> None:
    chosen = options(arena_bytes=150_000)
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    first = sent(sender.pack(shard(b"a" * 100_000)), receiver)
    array = np.frombuffer(first.tensors[0], np.uint8)[::2][5:]
    del first
    assert not is_claim(sender.pack(shard(b"b" * 100_000))), "the first view still holds the room"
    assert set(array) == {ord("a")}
    assert not array.flags.writeable
    del array
    assert is_claim(sender.pack(shard(b"b" * 100_000)))


def test_pack_full_arena_falls_back_to_messages() -> None:
    meter, chosen = Meter(), options(arena_bytes=250_000)
    receiver, sender = Receiver(chosen, NEVER, "infer", meter), Sender(chosen, NEVER, "infer", 1, meter)
    messages = [sender.pack(shard(bytes([number]) * 100_000)) for number in range(4)]
    assert [is_claim(message) for message in messages] == [True, True, False, False]
    for number, message in enumerate(messages):
        assert set(sent(message, receiver).tensors[0]) == {number}
    assert is_claim(sender.pack(shard(bytes(100_000))))
    counted = meter.drain()
    assert (counted["exchange", "claims"], counted["exchange", "large_messages"]) == (3, 2)


def test_pack_without_memfd_falls_back_to_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    meter, chosen = Meter(), options()
    receiver, sender = Receiver(chosen, NEVER, "infer", meter), Sender(chosen, NEVER, "infer", 1, meter)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(os, "memfd_create", refuse)
        message = sender.pack(shard(bytes(2000)))
        assert not is_claim(message)
    assert len(sent(message, receiver).tensors[0]) == 2000
    assert is_claim(sender.pack(shard(bytes(2000)))), "it is tried again"
    assert meter.drain()["exchange", "large_messages"] == 1


@pytest.mark.parametrize("shares_memory", [False, True])
def test_pack_record_beyond_messages_fails_its_rows(shares_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_MESSAGE_BYTES", 50_000)
    chosen = options(shares_memory=shares_memory, arena_bytes=100_000)
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    encoded = receiver.redeem(sender.pack(shard(bytes(60_000), first_row=7)))
    assert kind_of(encoded) is (RecordKind.SHARD if shares_memory else RecordKind.FAILURE), (
        "memory that is shared may hold it"
    )
    record = failed(sender.pack(shard(bytes(200_000), first_row=7)), receiver)
    assert (record.segment.first_row, record.failure.code) == (7, ExchangeFailed.code)


def test_pack_without_slots_falls_back_to_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SLOTS", 3)
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    messages = [sender.pack(shard(bytes([number]) * 2000)) for number in range(5)]
    assert [is_claim(message) for message in messages] == [True, True, True, False, False]
    assert [sent(message, receiver).tensors[0][0] for message in messages] == list(range(5))


def test_pack_claims_once_all_readers_are_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_LOOK_AGAIN_S", 0.0)
    chosen = options()
    sender = Sender(chosen, TaskContext(0, 2, 4), "infer", 2, Meter())
    assert not is_claim(sender.pack(shard(bytes(2000))))
    first = Receiver(chosen, TaskContext(0, 2, 4), "infer", Meter())
    others = [
        Receiver(options(), TaskContext(1, 2, 4), "infer", Meter()),  # of another job
        Receiver(chosen, TaskContext(1, 2, 3), "infer", Meter()),  # of an attempt that failed
        Receiver(chosen, TaskContext(1, 2, 4), "aggregate", Meter()),  # another operator
        Receiver(chosen, TaskContext(1, 2, 4, execution="before"), "infer", Meter()),  # before the JobManager was lost
    ]
    assert not is_claim(sender.pack(shard(bytes(2000))))
    second = Receiver(chosen, TaskContext(1, 2, 4), "infer", Meter())
    message = sender.pack(shard(bytes(2000)))
    assert is_claim(message)
    del first, others
    assert len(sent(message, second).tensors[0]) == 2000


def test_pack_ignores_a_reader_that_is_gone() -> None:
    chosen = options()
    receiver = Receiver(chosen, NEVER, "infer", Meter())
    del receiver
    assert not is_claim(Sender(chosen, NEVER, "infer", 1, Meter()).pack(shard(bytes(2000))))


@pytest.mark.parametrize("chosen", [options(shares_memory=False), options()], ids=["messages", "no way"])
def test_pack_without_shared_memory_sends_messages(chosen: TransportOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "host_identity", lambda: None)
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    message = sender.pack(shard(bytes(2000)))
    assert not is_claim(message)
    assert receiver.redeem(message) is message


def test_redeem_claim_of_another_host_gives_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, chosen = Meter(), options()
    receiver, sender = Receiver(chosen, NEVER, "infer", meter), Sender(chosen, NEVER, "infer", 1, Meter())
    message = sender.pack(shard(bytes(2000), first_row=7))
    monkeypatch.setattr(exchange, "host_identity", lambda: b"another host    ")
    elsewhere = Receiver(chosen, NEVER, "infer", meter)
    record = failed(message, elsewhere)
    assert (record.segment.first_row, record.failure.code) == (7, ExchangeFailed.code)
    assert meter.drain() == {("exchange", "lost"): 1}
    assert sent(message, receiver).segment.first_row == 7
    later = Receiver(chosen, TaskContext(0, 1, 1), "infer", meter)
    assert failed(message, later).segment.first_row == 7, (
        "a claim of an earlier attempt would fail in each that follows"
    )


def test_redeem_forbidden_arena_gives_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    message = sender.pack(shard(bytes(2000)))

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert failed(message, receiver).failure.code == ExchangeFailed.code


def test_redeem_after_the_writers_end_raises() -> None:
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    message = sender.pack(shard(bytes(2000)))
    del sender
    with pytest.raises(SegmentGone):
        receiver.redeem(message)


def test_redeem_twice_raises() -> None:
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    message = sender.pack(shard(bytes(2000)))
    sent(message, receiver)
    with pytest.raises(SegmentGone):
        receiver.redeem(message)
    following = sender.pack(shard(b"b" * 2000))
    with pytest.raises(SegmentGone):
        receiver.redeem(message)
    assert set(sent(following, receiver).tensors[0]) == {ord("b")}


@pytest.mark.slow
def test_arena_is_freed_with_its_last_holder() -> None:
    gc.collect()
    before = len(arenas([os.getpid()]))
    chosen = options()
    receiver, sender = Receiver(chosen, NEVER, "infer", Meter()), Sender(chosen, NEVER, "infer", 1, Meter())
    record = sent(sender.pack(shard(b"a" * 2000)), receiver)
    assert len(arenas([os.getpid()])) > before
    del sender, receiver
    assert set(record.tensors[0]) == {ord("a")}, "a mapping outlives its arena"
    del record
    assert len(arenas([os.getpid()])) == before


@pytest.mark.slow
def test_endpoints_of_an_earlier_attempt_free_their_memory() -> None:
    gc.collect()
    before = arenas([os.getpid()]).keys()
    chosen, other = options(), options()
    process = ProcessRuntime()
    held = []
    for job in (chosen, other):
        hold = process.acquire(job.job, 0)
        receiver, sender = Receiver(job, NEVER, "infer", Meter()), Sender(job, NEVER, "infer", 1, Meter())
        hold.own(receiver)
        hold.own(sender)
        held.append((receiver, sender, hold))
    views = [sent(sender.pack(shard(b"a" * 2000)), receiver) for receiver, sender, _ in held]
    assert len(arenas([os.getpid()]).keys() - before) == 2
    restarted = process.acquire(chosen.job, 1)
    following = Receiver(chosen, TaskContext(0, 1, 1), "infer", Meter())
    assert set(views[0].tensors[0]) == {ord("a")}, "viewed memory stays"
    views.clear()
    assert len(arenas([os.getpid()]).keys() - before) == 1, "another job's stays"
    sender = Sender(chosen, TaskContext(0, 1, 1), "infer", 1, Meter())
    assert len(sent(sender.pack(shard(bytes(2000))), following).tensors[0]) == 2000
    restarted.release()
    for _, _, hold in held:
        hold.release()
