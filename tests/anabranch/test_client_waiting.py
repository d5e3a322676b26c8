"""A client never waits longer than it was told: after fork, in a callback, without a receiver."""

import os
import threading
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from anabranch import Client, ClientForked, NoAnswer, Result, WaitsForItself
from anabranch.messaging.answer_future import AnswerFuture
from anabranch.schemas.tensors import Array
from anabranch.testing import FakeJob

ONE = np.ones((1, 2), np.float32)


def same(inputs: Mapping[str, Array]) -> Mapping[str, npt.ArrayLike]:
    return {"y": inputs["x"]}


def said_in_child(client: Client, sent: AnswerFuture) -> list[str]:
    """Forks, and returns the names of the errors that the child meets."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        names = []
        for attempt in (lambda: client.infer("same", {"x": ONE}), sent.result, client.close):
            try:
                attempt()
                names.append("none")
            except BaseException as error:  # noqa: BLE001 - a child of a test ends here, whatever comes
                names.append(type(error).__name__)
        os.write(writing, " ".join(names).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read().split()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_client_after_fork_raises_in_the_child_only() -> None:
    released = threading.Event()

    def slow(inputs: Mapping[str, Array]) -> Mapping[str, npt.ArrayLike]:
        released.wait(10)
        return same(inputs)

    with FakeJob({"same": same, "slow": slow}) as job, job.client() as client:
        assert client.infer("same", {"x": ONE})["y"].tolist() == [[1, 1]]
        sent = client.submit("slow", {"x": ONE})
        assert isinstance(sent, AnswerFuture)
        assert said_in_child(client, sent) == ["ClientForked", "ClientForked", "none"]
        released.set()
        assert sent.result()["y"].tolist() == [[1, 1]]
    assert issubclass(ClientForked, Exception)


def test_client_wait_inside_callback_raises_at_once() -> None:
    outcomes: list[object] = []
    done = threading.Event()

    with FakeJob({"same": same}) as job, job.client() as client:

        def ask_again(_: object) -> None:
            try:
                outcomes.append(client.infer("same", {"x": ONE}))
            except WaitsForItself as error:
                outcomes.append(error)
            done.set()

        client.submit("same", {"x": ONE}).add_done_callback(ask_again)
        assert done.wait(5)
        assert isinstance(outcomes[0], WaitsForItself)
        assert isinstance(client.infer("same", {"x": ONE}), Result)


def test_client_submit_inside_callback_is_answered() -> None:
    answered = threading.Event()
    with FakeJob({"same": same}) as job, job.client() as client:

        def chain(_: object) -> None:
            client.submit("same", {"x": ONE}).add_done_callback(lambda _: answered.set())

        client.submit("same", {"x": ONE}).add_done_callback(chain)
        assert answered.wait(5)


def future(*, expires_in_s: float) -> AnswerFuture:
    return AnswerFuture(threading.Thread(), time.monotonic() + expires_in_s, NoAnswer("late"))


@pytest.mark.slow
def test_future_without_a_receiver_ends_at_the_time_out() -> None:
    with pytest.raises(NoAnswer, match="late"):
        future(expires_in_s=0.0).result()
    with pytest.raises(NoAnswer, match="late"):
        future(expires_in_s=0.0).exception()


def test_future_with_a_shorter_wait_raises_time_out_only() -> None:
    with pytest.raises(TimeoutError) as waited:
        future(expires_in_s=60.0).result(0.01)
    assert not isinstance(waited.value, NoAnswer)


def test_future_ended_with_an_error_raises_that_error() -> None:
    ended = future(expires_in_s=60.0)
    ended.set_exception(NoAnswer("settled"))
    with pytest.raises(NoAnswer, match="settled"):
        ended.result()
    assert isinstance(ended.exception(), NoAnswer)
