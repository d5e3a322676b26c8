"""Loads of the demo: full throughput, a steady pace, and one large request."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import numpy as np

from anabranch.client import Client
from anabranch.demo.features import INPUT_NAME, LABELS, MODEL_NAME, OUTPUT_NAME
from anabranch.result import Result
from anabranch.schemas.tensors import Array


@dataclass
class DemoResponses:
    """Answers to many requests of one row.

    Attributes:
        scores: float32 [requests, LABELS]; NaN for missing answers.
        latencies_ms: [requests]; NaN for missing answers.
        failures: Errors by index of the request.
        elapsed_s: From the first request to the last answer.
    """

    scores: Array
    latencies_ms: Array
    failures: dict[int, Exception] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @classmethod
    def for_requests(cls, count: int) -> "DemoResponses":
        """Make the arrays."""
        return cls(np.full((count, LABELS), np.nan, np.float32), np.full(count, np.nan))

    @property
    def answered(self) -> int:
        """Requests with outputs."""
        return len(self.scores) - len(self.failures)

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answered / self.elapsed_s if self.elapsed_s else 0.0

    def latency_ms(self, *percentiles: float) -> list[float]:
        """Return percentiles of the latency; 0 without answers."""
        known = self.latencies_ms[~np.isnan(self.latencies_ms)]
        return [float(np.percentile(known, percentile)) if known.size else 0.0 for percentile in percentiles]


@dataclass(frozen=True)
class LargeAnswer:
    """The answer to one request of many rows, and the numbers of its shards and of the tasks that ran them."""

    scores: Array
    shards: int
    tasks: int
    latency_ms: float


def wait_until_served(
    client: Client, tokens: Array, timeout_s: float, again_s: float, on_silence: Callable[[], object]
) -> None:
    """Send a row until the job answers.

    Args:
        timeout_s: Time for the answer.
        again_s: Time after which the row is sent again.
        on_silence: Called before it is sent again.

    Raises:
        AnabranchError: No answer came in time, or the answer is an error.
    """
    end_s = time.monotonic() + timeout_s
    asked: list[Future[Result]] = []
    while not any(future.done() for future in asked):
        if asked:
            on_silence()
        left_s = max(again_s, end_s - time.monotonic())
        asked.append(client.submit(MODEL_NAME, {INPUT_NAME: tokens}, timeout_s=left_s))
        wait(asked, again_s, return_when=FIRST_COMPLETED)
    next(future for future in asked if future.done()).result()


def stream(client: Client, tokens: Array, in_flight: int, on_answer: Callable[[], object]) -> DemoResponses:
    """Send a request for every row, as fast as the job answers.

    Args:
        in_flight: Number of pending requests; divided by the throughput, it is the latency.
        on_answer: Called after each answer, on the client's thread.
    """
    answers = DemoResponses.for_requests(len(tokens))
    slots = threading.Semaphore(in_flight)
    start_s = time.monotonic()

    def collect(index: int, future: Future[Result]) -> None:
        _collect(answers, index, future)
        slots.release()
        on_answer()

    for index in range(len(tokens)):
        slots.acquire()
        future = client.submit(MODEL_NAME, {INPUT_NAME: tokens[index : index + 1]})
        future.add_done_callback(lambda future, index=index: collect(index, future))  # type: ignore[misc]
    for _ in range(in_flight):
        slots.acquire()
    answers.elapsed_s = time.monotonic() - start_s
    return answers


def pace(client: Client, tokens: Array, requests_per_s: float, on_answer: Callable[[], object]) -> DemoResponses:
    """Send a request for every row at even intervals, without waiting for answers.

    Latency counts from the time at which a request was due, so that a stall delays the requests behind it, too.
    """
    answers = DemoResponses.for_requests(len(tokens))
    missing = threading.Semaphore(0)
    start_s = time.monotonic()

    def collect(index: int, due_s: float, future: Future[Result]) -> None:
        _collect(answers, index, future)
        if index not in answers.failures:
            answers.latencies_ms[index] = (time.monotonic() - due_s) * 1000
        missing.release()
        on_answer()

    for index in range(len(tokens)):
        due_s = start_s + index / requests_per_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        future = client.submit(MODEL_NAME, {INPUT_NAME: tokens[index : index + 1]})
        future.add_done_callback(
            lambda future, index=index, due_s=due_s: collect(index, due_s, future)  # type: ignore[misc]
        )
    for _ in range(len(tokens)):
        missing.acquire()
    answers.elapsed_s = time.monotonic() - start_s
    return answers


def ask_large(client: Client, tokens: Array, timeout_s: float) -> LargeAnswer:
    """Send one request of many rows, which the job splits.

    Raises:
        AnabranchError: No answer came in time, or the answer is an error.
    """
    result = client.infer(MODEL_NAME, {INPUT_NAME: tokens}, parameters={"explain": True}, timeout_s=timeout_s)
    return LargeAnswer(
        scores=result[OUTPUT_NAME],
        shards=int(result.parameters.get("shards", 0)),
        tasks=int(result.parameters.get("tasks", 0)),
        latency_ms=result.latency_ms,
    )


def _collect(answers: DemoResponses, index: int, future: Future[Result]) -> None:
    try:
        result = future.result()
        answers.scores[index] = result[OUTPUT_NAME][0]
        answers.latencies_ms[index] = result.latency_ms
    except Exception as error:  # noqa: BLE001 - counted and shown; a callback must not raise
        answers.failures[index] = error
