"""A gateway without Kafka ends, so that its supervisor starts another one."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

import pytest

from anabranch.flink_job.model_summary import encode_summaries
from anabranch.gateway.server import Gateway, GatewayOptions, serve
from anabranch.messaging.connection import Headers
from anabranch.messaging.errors import TransportError
from anabranch.schemas.errors import AnabranchError
from anabranch.served_models import ServedModels
from tests.gateway.conftest import MODELS

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


def ask(url: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{url}/v2/models/same/infer", BODY, timeout=30)
    with raised.value as answer:
        return answer.code, json.load(answer)["error"]


class Broken:
    """A connection whose reading or sending ends at the first request."""

    sends_at_once = False

    def __init__(self, side: str) -> None:
        self._side = side
        self._sent = threading.Event()
        self.closed: list[str] = []

    def send(self, message: bytes, key: bytes, fail: Callable[[AnabranchError], None], headers: Headers = ()) -> None:
        self._sent.set()
        if self._side == "send":
            raise OSError("no route to the broker")

    def receive(self, timeout_ms: int) -> Iterable[tuple[bytes | None, bytes]]:
        if self._sent.wait(timeout_ms / 1000) and self._side == "receive":
            raise OSError("no route to the broker")
        return []

    def served_models(self) -> ServedModels:
        return ServedModels()

    def close_sender(self) -> None:
        self.closed.append("sender")

    def close_receiver(self) -> None:
        self.closed.append("receiver")


@pytest.mark.parametrize(
    ("side", "reason"), [("receive", "answers cannot be read"), ("send", "requests cannot be sent")]
)
def test_gateway_without_kafka_fails_its_requests_and_ends(side: str, reason: str) -> None:
    served, connection = ServedModels(), Broken(side)
    served.update("job", encode_summaries(MODELS).encode())
    gateway = Gateway(GatewayOptions(http_port=0), connection, served)

    asked: list[asyncio.Future[tuple[int, str]]] = []

    async def run() -> tuple[int, str]:
        with pytest.raises(TransportError, match=f"{reason}: no route to the broker"):
            await serve(
                gateway,
                lambda: asked.append(asyncio.ensure_future(asyncio.to_thread(ask, gateway.http_url))),
                asyncio.Event().wait,
            )
        return await asked[0]

    status, error = asyncio.run(asyncio.wait_for(run(), 60))
    assert status == 503
    assert reason in error
    assert sorted(connection.closed) == ["receiver", "sender"]
