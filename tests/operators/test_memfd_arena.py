"""Two processes share memory; after a kill (`kill -9`) of either, the kernel frees it with the last holder."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.transport.claim_check import TransportOptions, decode_claim, is_claim
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.operators.transport.endpoints import Receiver, Sender
from anabranch.operators.transport.memfd_arena import Presence, SegmentGone, host_identity, is_present
from anabranch.schemas.records import Segment, ShardRecord, Source
from tests.arenas import arenas

SIZE_BYTES = 3_000_000
ROOT = Path(__file__).parents[2]
#: Writes records when told to, or reads those that it is sent; says what it did, and waits for the next.
OTHER = """
import sys
from anabranch.operators.core.transport.claim_check import TransportOptions
from anabranch.operators.core.metrics import Meter
from anabranch.operators.transport.endpoints import Receiver, Sender
from anabranch.operators.runtime.task_context import TaskContext
from anabranch.schemas.records import Segment, ShardRecord, Source
options = TransportOptions(job=sys.argv[2], shares_memory=True, claim_from_bytes=1000, arena_bytes=1 << 24)
if sys.argv[1] == "writer":
    sender = Sender(options, TaskContext(0, 1, 0), "infer", 1, Meter())
    for line in sys.stdin:
        data = bytes([int(line)]) * int(sys.argv[3])
        print(sender.pack(ShardRecord(Segment(Source(0, 0, 0)), b"", (data,))).hex(), flush=True)
else:
    receiver = Receiver(options, TaskContext(0, 1, 0), "infer", Meter())
    print("ready", flush=True)
    held = []
    for line in sys.stdin:
        held.append(ShardRecord.decode(receiver.redeem(bytes.fromhex(line))))
        data = held[-1].tensors[0]
        print(len(data), data[0], data[-1], flush=True)
"""


class Other:
    """Another process."""

    def __init__(self, part: str, job: str) -> None:
        command = [sys.executable, "-c", OTHER, part, job, str(SIZE_BYTES)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def job() -> str:
    return os.urandom(8).hex()


@pytest.mark.parametrize("length", [1, 80, 108, 200, 10_000])
def test_presence_name_of_any_length_is_seen(job: str, length: int) -> None:
    name, other = job + "é" * length, job + "é" * (length - 1) + "x"
    assert not is_present(name)
    here = Presence(name)
    assert (is_present(name), is_present(other)) == (True, False)
    del here
    assert not is_present(name)


def options(job: str) -> TransportOptions:
    return TransportOptions(job=job, shares_memory=True, claim_from_bytes=1000, arena_bytes=1 << 24)


@pytest.fixture
def receiver(job: str) -> Receiver:
    return Receiver(options(job), TaskContext(0, 1, 0), "infer", Meter())


@pytest.fixture
def writer(job: str, receiver: Receiver) -> Iterator[Other]:
    writer = Other("writer", job)
    yield writer
    if writer.process.returncode is None:
        writer.kill()


def is_freed(message: bytes) -> bool:
    return decode_claim(message)[0].arena.hex() not in arenas()


@pytest.mark.slow
def test_record_crosses_between_processes(writer: Other, receiver: Receiver) -> None:
    for number in range(20):
        message = bytes.fromhex(writer.ask(str(number)))
        assert is_claim(message), "an arena of 16 MiB holds all that is under way"
        [data] = ShardRecord.decode(receiver.redeem(message)).tensors
        assert (len(data), data[0], data[-1]) == (SIZE_BYTES, number, number)


@pytest.mark.slow
def test_killed_writer_leaves_nothing(writer: Other, receiver: Receiver) -> None:
    message = bytes.fromhex(writer.ask("7"))
    assert not is_freed(message)
    writer.kill()
    assert is_freed(message)
    with pytest.raises(SegmentGone):
        receiver.redeem(message)


@pytest.mark.slow
def test_record_of_a_killed_writer_stays_readable_if_mapped(writer: Other, job: str) -> None:
    receiver = Receiver(options(job), TaskContext(0, 1, 0), "infer", Meter())
    first, second = (bytes.fromhex(writer.ask(number)) for number in ("1", "2"))
    held = ShardRecord.decode(receiver.redeem(first))
    writer.kill()
    assert set(bytes(held.tensors[0])) == {1}
    del held
    assert set(bytes(ShardRecord.decode(receiver.redeem(second)).tensors[0])) == {2}
    assert not is_freed(first)
    del receiver
    assert is_freed(first)


@pytest.mark.slow
def test_killed_reader_leaves_nothing_and_is_not_present(job: str) -> None:
    reader = Other("reader", job)
    assert reader.hear() == "ready"
    sender = Sender(options(job), TaskContext(0, 1, 0), "infer", 1, Meter())
    record = ShardRecord(Segment(Source(0, 0, 0)), b"", (bytes([9]) * SIZE_BYTES,))
    messages = [sender.pack(record) for _ in range(3)]
    assert all(map(is_claim, messages))
    for message in messages[:2]:
        assert reader.ask(message.hex()) == f"{SIZE_BYTES} 9 9"
    reader.kill()
    name = decode_claim(messages[0])[0].arena.hex()
    assert arenas()[name] == {os.getpid()}
    del sender
    assert is_freed(messages[0])
    restarted = Sender(options(job), TaskContext(0, 1, 0), "infer", 1, Meter())
    assert not is_claim(restarted.pack(record)), "its reader is gone"


@pytest.mark.slow
def test_killed_writer_and_reader_leave_nothing(job: str) -> None:
    reader = Other("reader", job)
    assert reader.hear() == "ready"
    writer = Other("writer", job)
    message = bytes.fromhex(writer.ask("3"))
    assert reader.ask(message.hex()) == f"{SIZE_BYTES} 3 3"
    assert arenas()[decode_claim(message)[0].arena.hex()] == {reader.process.pid, writer.process.pid}
    writer.kill()
    reader.kill()
    end = time.monotonic() + 10
    while not is_freed(message):
        assert time.monotonic() < end, arenas()
        time.sleep(0.01)


def test_host_identity_is_equal_in_all_processes() -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from anabranch.operators.transport.memfd_arena import host_identity; print(host_identity().hex())",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    identity = host_identity()
    assert identity is not None
    assert said.stdout.strip() == identity.hex()
