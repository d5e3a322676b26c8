"""A peer: Ray Serve with `@serve.batch`, behind a consumer and a producer on confluent-kafka.

    Kafka --> [ bridge: DeploymentHandle.remote ] --> [ replica: @serve.batch, session.run ] --> [ bridge ] --> Kafka

Settings, the quickest of several: handles in place of HTTP; `RAY_SERVE_THROUGHPUT_OPTIMIZED`; batches of at most 64
without waiting; 256 requests in flight; one replica, which parses messages; one thread a session; no dashboard.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness.messages import ServeCommand
from bench.systems.direct_models import DirectModels
from bench.systems.serving.kafka_bridge import carry

_MAX_ROWS = 64
_IN_FLIGHT = 256
_OBJECT_STORE_BYTES = 200_000_000


def run(command: ServeCommand) -> None:
    """Serve until this process is stopped, and end all processes of Ray with it."""
    # Read when Ray is imported.
    os.environ |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with running_ray(num_cpus=2):
        asyncio.run(_serve(command))


@contextmanager
def running_ray(num_cpus: int) -> Iterator[None]:
    """Run Ray for a block."""
    import ray  # noqa: PLC0415

    # Its sockets' paths may not be longer than 107 bytes: the benchmark's own folder is too deep.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


async def _serve(command: ServeCommand) -> None:
    from ray import serve  # noqa: PLC0415

    serve.start(proxy_location="Disabled")
    # In the loop that uses the handle: with these settings its router runs in it.
    handle = serve.run(_application(command.repository), name="peer", route_prefix=None)
    await carry(command, handle.remote, _IN_FLIGHT)


def _application(repository: str) -> Any:
    from ray import serve  # noqa: PLC0415

    @serve.deployment(max_ongoing_requests=2 * _IN_FLIGHT, ray_actor_options={"num_cpus": 1})
    class Replica:
        def __init__(self) -> None:
            self._models = DirectModels(Path(repository))

        @serve.batch(max_batch_size=_MAX_ROWS, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
        async def __call__(self, messages: list[bytes]) -> list[tuple[bytes, bytes]]:
            # A caller may get another's answer, where models are mixed: each comes with its key, so none is lost.
            return self._models.answer_batch(messages)

    return Replica.bind()  # type: ignore[attr-defined]
