"""Streams of requests, of which some run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

_AHEAD = 16
_T = TypeVar("_T")


async def in_order(requests: AsyncIterator[bytes], ask: Callable[[bytes], Awaitable[_T]]) -> AsyncIterator[_T]:
    """Yield the answers in the order of the requests; reads at most 16 requests ahead of its consumer."""
    asked: asyncio.Queue[asyncio.Future[_T] | None] = asyncio.Queue(_AHEAD)

    async def read() -> None:
        try:
            async for message in requests:
                await asked.put(asyncio.ensure_future(ask(message)))
        finally:
            await asked.put(None)

    reading = asyncio.ensure_future(read())
    try:
        while (task := await asked.get()) is not None:
            yield await task
    finally:
        reading.cancel()
        while not asked.empty():
            if (left := asked.get_nowait()) is not None:
                left.cancel()
