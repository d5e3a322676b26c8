"""A user's program: every public class, with the types that a type checker must know."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type  # noqa: UP035 - Python 3.10's typing has no assert_type

import anabranch
from anabranch import AnabranchError, Client, DeadlineExceeded, RequestError, Result, ServingError, TransportError
from anabranch.errors import InferenceFailed
from anabranch.operators.backends.base import Backend, Session
from anabranch.schemas.model import ModelSpec
from anabranch.testing import Answer, ErrorResponse, FakeJob, InferRequest, InferResponse, ReceivedRequest

Array = npt.NDArray[Any]


class DoublingSession:
    """A loaded model of a custom backend."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Doubles the input `x` for each output."""
        return [2 * inputs["x"] for _ in outputs]


class DoublingBackend:
    """A custom backend."""

    def load(self, model: ModelSpec) -> Session:
        """Loads nothing."""
        return DoublingSession()


def before(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    """Prepares the inputs of a step."""
    return {"x": tensors["picture"].astype(np.float32)}


def after(tensors: Mapping[str, Array], runs: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """Makes the outputs of a step."""
    return {"text": np.concatenate([run["y"] for run in runs])}


def double(inputs: Mapping[str, Array]) -> Mapping[str, npt.ArrayLike]:
    """Stands for a model; refuses negative values."""
    if (inputs["x"] < 0).any():
        raise InferenceFailed("negative")
    return {"y": 2 * inputs["x"], "count": [len(inputs["x"])]}


def refuse(request: InferRequest) -> list[Answer]:
    """Answers every request with an error."""
    return [ErrorResponse(request.id, "deadline_exceeded", "too late")]


def accept(request: InferRequest) -> list[Answer]:
    """Answers every request without outputs."""
    return [InferResponse(request.model_name, "1", request.id, ())]


def ask(client: Client, images: Array) -> Array | None:
    """Uses every argument of a request."""
    try:
        result = client.infer(
            "double",
            {"x": images},
            version="1",
            outputs=["y"],
            priority=1,
            deadline_ms=200,
            partial=True,
            parameters={"explain": True, "seed": np.int32(7)},
            key="customer-1",
            timeout_s=5,
        )
    except DeadlineExceeded as error:
        assert_type(error.code, str)
        return None
    except (RequestError, ServingError, TransportError):
        raise
    assert_type(result, Result)
    assert_type(result["y"], Array)
    assert_type(result.missing_rows, list[tuple[int, int]])
    assert_type(result.breakdown_ms, dict[str, float])
    assert_type(result.latency_ms, float)
    return result["y"]


def main() -> None:
    """Asks a fake job."""
    with FakeJob({"double": double}) as job, job.client(timeout_s=20) as client:
        assert_type(job, FakeJob)
        assert_type(client, Client)
        answer = ask(client, np.ones((2, 3)))
        assert answer is not None
        assert answer.tolist() == [[2.0] * 3] * 2
        future = client.submit("double", [[1.0, 2.0]], timeout_s=20)
        assert_type(future, Future[Result])
        assert_type(job.received, list[ReceivedRequest])
        assert_type(job.requests[0].parameters["priority"], bool | int | float | str)
        failure: BaseException | None = client.submit("double", {"x": [-1.0]}).exception()
        assert isinstance(failure, AnabranchError)
        assert (failure.code, failure.message) == ("inference_failed", "negative")
        job.answer = refuse
        assert ask(client, np.ones(1)) is None
        job.answer = accept
        assert len(client.infer("double", np.ones(1))) == 0
    backend: Backend = DoublingBackend()
    session: type[Session] = DoublingSession
    assert_type(anabranch.__version__, str)
    print(anabranch.__version__, anabranch.NoAnswer.code, type(backend).__name__, session.__name__)


if __name__ == "__main__":
    main()
