"""`Client("http://…")` has the face of the client of Kafka."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from anabranch import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    GatewayRefused,
    GatewayUnreachable,
    InferenceFailed,
    UnknownModel,
    WrongDatatype,
)
from anabranch.gateway.access import Keys
from tests.gateway.conftest import Served, ones


def test_http_client_results_are_those_of_the_job(served: Served) -> None:
    with Client(served.url) as client:
        result = client.infer("same", {"x": ones(3)}, priority=2, parameters={"tenant": "blue"})
        assert (result.model_name, result.model_version) == ("same", "2")
        np.testing.assert_array_equal(result["y"], ones(3))
        assert client.infer("same", ones(), version="1").model_version == "1"
        words = np.array([["grüße", ""]], dtype=object)
        assert client.infer("text", {"x": words})["y"].ravel().tolist() == ["grüße".encode(), b""]
    assert served.job.requests[0].parameters["tenant"] == "blue"


@pytest.mark.slow
def test_http_client_models_metadata_and_casts_work(served: Served) -> None:
    with Client(served.url) as client:
        assert client.models()["same"] == ["1", "2"]
        assert client.metadata("half").inputs[0].datatype == "FP16"
        assert client.is_ready("same")
        assert not client.is_ready("nothing")
        assert client.infer("half", [[1, 2]], casts=True)["y"].dtype == np.float16
        with pytest.raises(WrongDatatype):
            client.infer("half", [[1e9, 2]], casts=True)


@pytest.mark.slow
def test_http_client_errors_have_their_class(served: Served) -> None:
    with Client(served.url) as client:
        with pytest.raises(UnknownModel):
            client.infer("nothing", ones())
        with pytest.raises(InferenceFailed, match="poison"):
            client.infer("bad", ones())
        with pytest.raises(DeadlineExceeded):
            client.infer("slow", ones(), deadline_ms=10)


@pytest.mark.slow
def test_http_client_500_awaits_come_back(served: Served) -> None:
    async def run() -> list[float]:
        async with AsyncClient(served.url) as client:
            results = await asyncio.gather(*(client.infer("same", ones() * number) for number in range(500)))
            return [result["y"][0, 0] for result in results]

    assert asyncio.run(run()) == list(range(500))


@pytest.mark.slow
def test_http_client_map_keeps_the_order(served: Served) -> None:
    with Client(served.url) as client:
        results = client.map("same", (ones() * number for number in range(100)), concurrency=16)
        assert [result["y"][0, 0] for result in results] == list(range(100))


def test_http_client_without_gateway_says_so() -> None:
    with pytest.raises(GatewayUnreachable, match="no gateway answers"):
        Client("http://127.0.0.1:9")


def test_http_client_needs_the_key(start: Callable[..., Served]) -> None:
    served = start(keys=Keys(["k" * 16]))
    with Client(served.url, api_key="k" * 16) as client:
        assert client.infer("same", ones()).model_name == "same"
    with Client(served.url) as client, pytest.raises(GatewayRefused, match="401"):
        client.infer("same", ones())
