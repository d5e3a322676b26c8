"""The client for programs with an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from anabranch.client import Client, Inputs
from anabranch.result import Result

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - Python 3.10's typing has no Self

    from anabranch.flink_job.model_summary import ModelSummary


class AsyncClient:
    """`Client` with methods to await: use it as an asynchronous context manager.

    Any number of requests share one connection.

    Args:
        bootstrap_servers: As for `Client`.
        options: Further arguments of `Client`.
    """

    def __init__(self, bootstrap_servers: str = "127.0.0.1:9092", **options: Any) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._options = options

    async def __aenter__(self) -> Self:
        """Connect, and return the client itself."""
        self._client = await asyncio.to_thread(lambda: Client(self._bootstrap_servers, **self._options))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.close()

    def submit(self, model: str, inputs: Inputs, **options: Any) -> asyncio.Future[Result]:
        """Send a request, and return a future of its result; takes the arguments of `Client.infer`."""
        return asyncio.wrap_future(self._client.submit(model, inputs, **options))

    async def infer(self, model: str, inputs: Inputs, **options: Any) -> Result:
        """Send a request and await its result; takes the arguments of `Client.infer`.

        Raises:
            AnabranchError: As `Client.infer`.
        """
        return await self.submit(model, inputs, **options)

    async def map(
        self,
        model: str,
        requests: Iterable[Inputs],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> AsyncIterator[Result]:
        """Send many requests, and yield their results; see `Client.map`."""
        waiting: deque[asyncio.Future[Result]] = deque()
        done, items = 0, iter(requests)
        while True:
            more = islice(items, concurrency - len(waiting))
            waiting.extend(self.submit(model, inputs, **options) for inputs in more)
            if not waiting:
                return
            future = waiting[0]
            if not ordered:
                ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                future = ready.pop()
            waiting.remove(future)
            yield await future
            done += 1
            if progress is not None:
                progress(done)

    async def models(self) -> dict[str, list[str]]:
        """Return the versions of each served model, the newest last."""
        return await asyncio.to_thread(self._client.models)

    async def is_ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a job has published the model, or any."""
        return await asyncio.to_thread(self._client.is_ready, model, version)

    async def metadata(self, model: str, version: str = "") -> ModelSummary:
        """Describe a model; see `Client.metadata`."""
        return await asyncio.to_thread(self._client.metadata, model, version)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.to_thread(self._client.close)
