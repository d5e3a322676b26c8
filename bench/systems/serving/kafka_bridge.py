"""Between Kafka and a server: one process that keeps many requests in flight, each of them asked by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

from confluent_kafka import Message

from bench.harness.messages import ServeCommand
from bench.systems.kafka_workers.kafka_clients import COMMIT_INTERVAL_S, KafkaEnds

_TAKE = 64


async def carry(
    command: ServeCommand, ask: Callable[[bytes], Awaitable[tuple[bytes | None, bytes]]], most: int
) -> None:
    """Serves until this process is stopped, or until a request fails.

    Args:
        ask: From a request's message to a key, None for that of the request's record, and an answer.
        most: How many requests may be in flight.
    """
    kafka = KafkaEnds(command)
    slots = asyncio.Semaphore(most)

    async def answer(record: Message) -> None:
        try:
            key, message = await ask(record.value() or b"")
            kafka.give(key or record.key(), message)
        finally:
            slots.release()

    while True:
        commit_at = monotonic() + COMMIT_INTERVAL_S
        # Left when all that was taken is answered, and only then are offsets committed.
        async with asyncio.TaskGroup() as asked:
            while monotonic() < commit_at:
                for record in await asyncio.to_thread(kafka.take, _TAKE):
                    await slots.acquire()
                    asked.create_task(answer(record))
                kafka.note_deliveries()
        await asyncio.to_thread(kafka.commit)
