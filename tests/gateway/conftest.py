"""A gateway on a free port, in front of a fake job in this process."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from anabranch.flink_job.model_summary import BatchingSummary, ModelSummary, encode_summaries
from anabranch.gateway.job_view import PageData
from anabranch.gateway.server import Gateway, GatewayOptions, serve
from anabranch.gateway.tracing import Tracer
from anabranch.schemas.model import TensorSpec
from anabranch.served_models import ServedModels
from anabranch.testing import FakeJob

BATCHING = BatchingSummary(is_batchable=True, fixed_rows=None, max_rows=8, shard_rows=32, max_delay_ms=0)


def summary(name: str, datatype: str, version: str = "1", shape: tuple[int | None, ...] = (None, 2)) -> ModelSummary:
    x, y = TensorSpec("x", datatype, shape), TensorSpec("y", datatype, shape)
    return ModelSummary(
        name=name, version=version, kind="model", sha256="", inputs=(x,), outputs=(y,), batching=BATCHING
    )


MODELS = [
    summary("same", "FP32"),
    summary("same", "FP32", "2"),
    summary("half", "FP16"),
    summary("text", "BYTES"),
    summary("slow", "FP32"),
    summary("bad", "FP32"),
]


@dataclass
class Served:
    """A running gateway."""

    url: str
    job: FakeJob
    gateway: Gateway
    release: threading.Event

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]


def _job(release: threading.Event, more: Mapping[str, Any]) -> FakeJob:
    def same(inputs: Any) -> Any:
        return {"y": next(iter(inputs.values()))}

    def slow(inputs: Any) -> Any:
        release.wait(20)
        return same(inputs)

    def bad(inputs: Any) -> Any:
        raise ValueError("poison")

    models = dict.fromkeys(("same", "half", "text"), same)
    return FakeJob({**models, "slow": slow, "bad": bad, **more})


@contextmanager
def gateways(
    summaries: Sequence[ModelSummary] = (), models: Mapping[str, Any] | None = None
) -> Iterator[Callable[..., Served]]:
    """Gives a function that starts gateways, and stops them at the end.

    Args:
        summaries: More models, with their functions.
    """
    stops: list[Callable[[], None]] = []

    def start(page: PageData | None = None, tracer: Tracer | None = None, **options: Any) -> Served:
        release, ready = threading.Event(), threading.Event()
        job, served = _job(release, models or {}), ServedModels()
        served.update("job", encode_summaries([*MODELS, *summaries]).encode())
        gateway = Gateway(GatewayOptions(http_port=0, grpc_port=0, **options), job.connection(), served, page, tracer)
        loop, stopped = asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(gateway, ready.set, stopped.wait),))
        thread.start()

        def stop() -> None:
            release.set()
            loop.call_soon_threadsafe(stopped.set)
            thread.join()
            loop.close()
            job.close()

        stops.append(stop)
        assert ready.wait(20)
        return Served(gateway.http_url, job, gateway, release)

    try:
        yield start
    finally:
        for stop in stops:
            stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    with gateways() as start:
        yield start


@pytest.fixture(scope="session")
def shared() -> Iterator[Served]:
    """One gateway for requests that leave nothing behind: each comes after hostile ones."""
    with gateways() as start:
        yield start(timeout_s=5.0, max_body_bytes=1 << 20)


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    return start(timeout_s=5.0)


def ones(rows: int = 1) -> np.ndarray[Any, Any]:
    return np.ones((rows, 2), np.float32)
