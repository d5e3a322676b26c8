"""Many requests at once, models and casts, of the client and of its asynchronous form; with a fake job."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from anabranch import AsyncClient, InferenceFailed, UnknownModel, WrongDatatype
from anabranch.flink_job.model_summary import BatchingSummary, ModelSummary, encode_summaries
from anabranch.schemas.model import TensorSpec
from anabranch.testing import FakeJob

BATCHING = BatchingSummary(is_batchable=True, fixed_rows=None, max_rows=8, shard_rows=32, max_delay_ms=0)
SHAPES: dict[str, dict[str, tuple[int | None, ...]]] = {
    "pair": {"a": (None,), "b": (None, 1)},
    "twice": {"x": (None, 2)},
}


class Frame:
    """As much of a pandas DataFrame as the client uses."""

    def __init__(self, **columns: list[float]) -> None:
        self._columns = {name: np.array(values) for name, values in columns.items()}
        self.columns: Any = list(columns)
        self.iloc: Any = self

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, chosen: Any) -> Any:
        if isinstance(chosen, slice):
            return Frame(**{name: values[chosen].tolist() for name, values in self._columns.items()})
        return Frame(**{chosen: self._columns[chosen].tolist()})

    def to_numpy(self) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = np.stack(list(self._columns.values()), axis=1)
        return values.ravel() if len(self.columns) == 1 else values


def summaries() -> list[ModelSummary]:
    return [
        ModelSummary(
            name=name,
            version="1",
            kind="model",
            sha256="",
            inputs=tuple(TensorSpec(each, "FP32", shape) for each, shape in inputs.items()),
            outputs=(),
            batching=BATCHING,
        )
        for name, inputs in SHAPES.items()
    ]


@pytest.fixture
def job() -> Iterator[FakeJob]:
    def pair(inputs: Any) -> Any:
        return {"y": inputs["a"][:, None] + inputs["b"]}

    def twice(inputs: Any) -> Any:
        x = next(iter(inputs.values()))
        if (x < 0).any():
            raise ValueError("negative")
        return {"y": 2 * x}

    with FakeJob({"pair": pair, "twice": twice}) as fake:
        fake.served.update("job", encode_summaries(summaries()).encode())
        yield fake


def rows(count: int) -> list[np.ndarray[Any, Any]]:
    return [np.full((1, 2), number, np.float32) for number in range(count)]


def test_map_results_come_in_the_order_of_requests(job: FakeJob) -> None:
    told: list[int] = []
    with job.client() as client:
        results = list(client.map("twice", rows(100), concurrency=7, progress=told.append))
    assert [result["y"][0, 0] for result in results] == [2 * number for number in range(100)]
    assert told == list(range(1, 101))


def test_map_requests_are_read_as_they_are_needed(job: FakeJob) -> None:
    taken: list[int] = []

    def requests() -> Iterator[Any]:
        for number, x in enumerate(rows(50)):
            taken.append(number)
            yield x

    with job.client() as client:
        results = client.map("twice", requests(), concurrency=5)
        next(results)
        assert len(taken) == 5
        assert len(list(results)) == 49


def test_map_unordered_results_are_all_there(job: FakeJob) -> None:
    with job.client() as client:
        results = client.map("twice", rows(40), concurrency=8, ordered=False)
        assert sorted(result["y"][0, 0] for result in results) == [2 * number for number in range(40)]


def test_map_failed_request_raises_in_its_place(job: FakeJob) -> None:
    requests = [*rows(3), np.full((1, 2), -1, np.float32), *rows(2)]
    with job.client() as client:
        results = client.map("twice", requests)
        assert [next(results)["y"][0, 0] for _ in range(3)] == [0, 2, 4]
        with pytest.raises(InferenceFailed, match="negative"):
            next(results)


def test_map_data_frame_is_cut_into_requests(job: FakeJob) -> None:
    frame = Frame(a=[1, 2, 3], b=[10, 20, 30])
    with job.client() as client:
        found = [result["y"].ravel().tolist() for result in client.map("pair", frame, rows=2, casts=True)]
        assert found == [[11, 22], [33]]
        found = [result["y"].tolist() for result in client.map("twice", frame, casts=True)]
        assert found == [[[2, 20], [4, 40], [6, 60]]]


def test_client_models_are_those_that_jobs_publish(job: FakeJob) -> None:
    with job.client() as client:
        assert client.models() == {"pair": ["1"], "twice": ["1"]}
        assert [spec.name for spec in client.metadata("pair").inputs] == ["a", "b"]
        assert client.is_ready()
        assert client.is_ready("pair", "1")
        assert not client.is_ready("pair", "2")
        with pytest.raises(UnknownModel):
            client.metadata("nothing")


def test_client_casts_lists_and_refuses_lost_values(job: FakeJob) -> None:
    with job.client() as client:
        assert client.infer("twice", [[1, 2]], casts=True)["y"].tolist() == [[2, 4]]
        with pytest.raises(WrongDatatype, match="input 'x'"):
            client.infer("twice", [[1e39, 0]], casts=True)


def test_async_client_500_awaits_share_a_connection(job: FakeJob) -> None:
    async def run() -> list[float]:
        client = AsyncClient(connection=job.connection())
        async with client:
            before = threading.active_count()
            results = await asyncio.gather(*(client.infer("twice", x) for x in rows(500)))
            assert threading.active_count() <= before  # Threads of earlier tests may end.
            assert await client.models() == {"pair": ["1"], "twice": ["1"]}
            assert await client.is_ready("twice")
            return [result["y"][0, 0] for result in results]

    assert asyncio.run(run()) == [2 * number for number in range(500)]


@pytest.mark.parametrize("ordered", [True, False])
def test_async_client_map_yields_all_results(job: FakeJob, ordered: bool) -> None:
    async def run() -> list[float]:
        async with AsyncClient(connection=job.connection()) as client:
            return [each["y"][0, 0] async for each in client.map("twice", rows(60), concurrency=9, ordered=ordered)]

    found = asyncio.run(run())
    assert (found if ordered else sorted(found)) == [2 * number for number in range(60)]


def test_async_client_error_is_raised_by_await(job: FakeJob) -> None:
    async def run() -> None:
        async with AsyncClient(connection=job.connection()) as client:
            with pytest.raises(InferenceFailed):
                await client.infer("twice", np.full((1, 2), -1, np.float32))

    asyncio.run(run())
