"""Requests that differ only in their id, and their right answers."""

import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.demo.features import FeatureReader, ModelFile
from anabranch.onnx_runtime.session import open_session
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from bench.workloads.models import FFNN, FFNN_WIDTHS, HEAVY, RESNET

ID_BYTES = 12
#: Placeholder of the id.
PLACEHOLDER = "@" * ID_BYTES
#: Differences of float32 results between batch sizes.
TOLERANCE = 1e-5

#: A request's `priority`, `timeout`, `explain`.
Parameters = Mapping[str, int | bool]

#: Rows of the larger requests of the feed-forward network.
FFNN_ROWS = 32
_DISTINCT_REQUESTS = 64
#: Channels, height, width.
_PICTURE = (3, 224, 224)
_DISTINCT_PICTURES = 16
_SEED = 1
#: Its scores of a row differ by 3e-3 when the row shares a batch.
_MAGIKA_TOLERANCE = 1e-2
#: Fields of a workload, in its file.
_SCALARS, _ARRAYS = ("name", "rows", "tolerance", "wire"), ("requests", "answers")


@dataclass(frozen=True)
class Workload:
    """Distinct requests, sent in turn.

    Attributes:
        requests: Messages with a placeholder for the id; uint8, [bytes] each.
        answers: Results of a direct run; float32, [values] each.
        rows: Rows of each request.
        tolerance: Largest deviation of a right answer.
        wire: `requests`, the format of events, or `rows` for events of which the answer has number and score alone.
    """

    name: str
    requests: Sequence[Array]
    answers: Sequence[Array]
    rows: int = 1
    tolerance: float = TOLERANCE
    wire: str = "requests"

    def message(self, number: int) -> bytes:
        """Return the message of the request with this number; its id is the number too."""
        head, tail = self._parts[number % len(self._parts)]
        return b"".join((head, id_of(number), tail))

    def answer(self, number: int) -> Array:
        """Return the right outputs of a request."""
        answer: Array = self.answers[number % len(self.answers)]
        return answer

    @property
    def message_bytes(self) -> int:
        """Size of the first message."""
        return len(self.requests[0])

    @cached_property
    def _parts(self) -> list[tuple[bytes, bytes]]:
        placeholder = PLACEHOLDER.encode()
        parts = (request.tobytes().partition(placeholder) for request in self.requests)
        return [(head, tail) for head, _, tail in parts]

    def save(self, path: Path) -> None:
        """Write the workload for another process."""
        scalars = {name: getattr(self, name) for name in _SCALARS}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        joined = {name: np.concatenate([*each]) for name, each in arrays.items()}
        ends = {f"{name}_ends": np.cumsum([len(array) for array in each]) for name, each in arrays.items()}
        np.savez(path, **scalars, **joined, **ends)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file of `save`."""
        with np.load(path) as file:
            scalars = {name: file[name].item() for name in _SCALARS}
            requests, answers = (np.split(file[name], file[f"{name}_ends"][:-1]) for name in _ARRAYS)
        return cls(requests=requests, answers=answers, **scalars)


def id_of(number: int) -> bytes:
    """Return a request's number as its id."""
    return b"%0*d" % (ID_BYTES, number)


def ffnn_rows(repository: Path, rows: int = 1, *, explain: bool = False) -> Workload:
    """Random vectors for the feed-forward network, `rows` in each request."""
    rng = np.random.default_rng(_SEED)
    tensors = [rng.random((rows, FFNN_WIDTHS[0]), np.float32) for _ in range(_DISTINCT_REQUESTS)]
    return workload_of(f"{FFNN} {rows}", FFNN, "x", tensors, repository, asking(explain=explain))


def heavy_and_light(repository: Path) -> Workload:
    """One row in each request, for the heavy and for the light network in turn."""
    rng = np.random.default_rng(_SEED)
    tensors = [rng.random((1, FFNN_WIDTHS[0]), np.float32) for _ in range(_DISTINCT_REQUESTS)]
    heavy, light = (workload_of(model, model, "x", tensors, repository) for model in (HEAVY, FFNN))
    requests, answers = [*heavy.requests], [*heavy.answers]
    requests[1::2], answers[1::2] = light.requests[1::2], light.answers[1::2]
    return Workload(f"{HEAVY} and {FFNN}", requests, answers)


def magika_files(repository: Path, parameters_in_turn: Sequence[Parameters] = ({},), model: str = MAGIKA) -> Workload:
    """Real files of the running Python's library, as Magika's own code turns them into tokens.

    Args:
        parameters_in_turn: Of the requests: request n has those of n modulo their number.
        model: Magika, or a copy of it.
    """
    count = _DISTINCT_REQUESTS - _DISTINCT_REQUESTS % len(parameters_in_turn)
    tensors = [tokens[np.newaxis] for tokens in islice(_tokens_of_files(), count)]
    return workload_of(model, model, "bytes", tensors, repository, parameters_in_turn, tolerance=_MAGIKA_TOLERANCE)


def magika_batches(repository: Path, rows: int) -> Workload:
    """Return the same files, `rows` of them in each request."""
    files = list(islice(_tokens_of_files(), _DISTINCT_REQUESTS))
    tensors = [
        np.stack([files[(first + row) % len(files)] for row in range(rows)])
        for first in range(0, _DISTINCT_REQUESTS, 8)
    ]
    return workload_of(f"{MAGIKA} {rows}", MAGIKA, "bytes", tensors, repository, tolerance=_MAGIKA_TOLERANCE)


def resnet_pictures(repository: Path, *, explain: bool = False, model: str = RESNET) -> Workload:
    """Random pictures, one in each request, for ResNet-50 or a copy of it."""
    rng = np.random.default_rng(_SEED)
    tensors = [rng.standard_normal((1, *_PICTURE), np.float32) for _ in range(_DISTINCT_PICTURES)]
    return workload_of(model, model, "gpu_0/data_0", tensors, repository, asking(explain=explain))


def asking(*, explain: bool) -> Sequence[Parameters]:
    """Parameters of all requests: `explain`, or none."""
    return ({"explain": True},) if explain else ({},)


def _tokens_of_files() -> Iterator[Array]:
    reader = FeatureReader()
    paths = sorted(path for path in Path(sysconfig.get_path("stdlib")).iterdir() if path.is_file())
    for path in paths:
        file = reader.read(path)
        if isinstance(file, ModelFile):
            yield np.ascontiguousarray(file.tokens, np.int32)


def workload_of(
    name: str,
    model: str,
    input_name: str,
    tensors: list[Array],
    repository: Path,
    parameters_in_turn: Sequence[Parameters] = ({},),
    *,
    tolerance: float = TOLERANCE,
) -> Workload:
    """One request for each tensor with the answer of a direct run; the model has one input and one output."""
    inputs = [{input_name: array} for array in tensors]
    return workload_of_inputs(name, model, inputs, repository, parameters_in_turn, tolerance=tolerance)


def workload_of_inputs(
    name: str,
    model: str,
    inputs: Sequence[Mapping[str, Array]],
    repository: Path,
    parameters_in_turn: Sequence[Parameters] = ({},),
    *,
    tolerance: float = TOLERANCE,
) -> Workload:
    """One request for each set of inputs with the answer of a direct run; the model has one output."""
    session: onnxruntime.InferenceSession = open_session(next((repository / model).glob("*/model.onnx")))
    answers = [session.run(None, dict(arrays))[0].ravel().astype(np.float32) for arrays in inputs]
    rows = len(next(iter(inputs[0].values())))
    requests = requests_of(model, inputs, parameters_in_turn)
    return Workload(name, requests, answers, rows=rows, tolerance=tolerance)


def requests_of(
    model: str, inputs: Sequence[Mapping[str, Array]], parameters_in_turn: Sequence[Parameters] = ({},)
) -> list[Array]:
    """Return a message for each set of inputs, uint8, [bytes] each."""
    messages = []
    for number, arrays in enumerate(inputs):
        parameters = {**parameters_in_turn[number % len(parameters_in_turn)]}
        tensors = tuple(Tensor.from_array(key, array) for key, array in arrays.items())
        request = InferRequest(model, tensors, id=PLACEHOLDER, parameters=parameters)
        messages.append(np.frombuffer(codec.encode_request(request), np.uint8))
    return messages
