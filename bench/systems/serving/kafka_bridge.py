"""A bridge between Kafka and a server, with many single requests in flight."""

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
    """Serve until this process is stopped, or until a request fails.

    Args:
        ask: Maps a request's message to a key (None for the record's) and an answer.
        most: Limit of requests in flight.
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
        # Offsets are committed once all taken requests are answered.
        async with asyncio.TaskGroup() as asked:
            while monotonic() < commit_at:
                for record in await asyncio.to_thread(kafka.take, _TAKE):
                    await slots.acquire()
                    asked.create_task(answer(record))
                kafka.note_deliveries()
        await asyncio.to_thread(kafka.commit)
