"""What is sent: requests that are made once and differ only in their id, and the answers that they must get."""

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime

from anabranch.demo.features import MODEL_NAME as MAGIKA
from anabranch.demo.features import FeatureReader, ModelFile, open_session
from bench.models import FFNN, FFNN_WIDTHS, RESNET
from schemas import codec
from schemas.messages import InferRequest
from schemas.tensors import Array, Tensor

ID_BYTES = 12
#: Where the id goes.
PLACEHOLDER = "@" * ID_BYTES

_DISTINCT_REQUESTS = 64
#: Channels, height, width.
_PICTURE = (3, 224, 224)
_DISTINCT_PICTURES = 16
_SEED = 1


@dataclass(frozen=True)
class Workload:
    """Distinct requests of one length, sent round and round.

    Attributes:
        requests: uint8, [requests, bytes]: whole messages, with a placeholder where the id goes.
        id_at: Where in every message that is.
        answers: float32, [requests, values]: what a direct run of the model gives for each.
    """

    name: str
    requests: Array
    id_at: int
    answers: Array

    def message(self, number: int) -> bytes:
        """The message of the request with this number; its id is the number too."""
        head, tail = self._parts[number % len(self._parts)]
        return b"".join((head, id_of(number), tail))

    def answer(self, number: int) -> Array:
        """What the outputs of that request must be."""
        answer: Array = self.answers[number % len(self.answers)]
        return answer

    @property
    def message_bytes(self) -> int:
        """Size of every message."""
        return int(self.requests.shape[1])

    @cached_property
    def _parts(self) -> list[tuple[bytes, bytes]]:
        end = self.id_at + ID_BYTES
        return [(row[: self.id_at].tobytes(), row[end:].tobytes()) for row in self.requests]

    def save(self, path: Path) -> None:
        """Writes it where another process can read it."""
        np.savez(path, name=self.name, requests=self.requests, id_at=self.id_at, answers=self.answers)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            return cls(str(file["name"]), file["requests"], int(file["id_at"]), file["answers"])


def id_of(number: int) -> bytes:
    """A request's number as its id."""
    return b"%0*d" % (ID_BYTES, number)


def ffnn_rows(repository: Path, rows: int = 1) -> Workload:
    """Random vectors for the feed-forward network, `rows` in each request."""
    rng = np.random.default_rng(_SEED)
    tensors = [rng.random((rows, FFNN_WIDTHS[0]), np.float32) for _ in range(_DISTINCT_REQUESTS)]
    return _workload(f"{FFNN} {rows}", FFNN, "x", tensors, repository)


def magika_files(repository: Path, priorities: Sequence[int] = ()) -> Workload:
    """Real files of the running Python's library, as Magika's own code turns them into tokens.

    Args:
        priorities: Of the requests, in turn: request n has priority n modulo their number.
    """
    count = _DISTINCT_REQUESTS - _DISTINCT_REQUESTS % max(1, len(priorities))
    tensors = [tokens[np.newaxis] for tokens in islice(_tokens_of_files(), count)]
    return _workload(MAGIKA, MAGIKA, "bytes", tensors, repository, priorities)


def resnet_pictures(repository: Path) -> Workload:
    """Random pictures, one in each request."""
    rng = np.random.default_rng(_SEED)
    tensors = [rng.standard_normal((1, *_PICTURE), np.float32) for _ in range(_DISTINCT_PICTURES)]
    return _workload(RESNET, RESNET, "gpu_0/data_0", tensors, repository)


def _tokens_of_files() -> Iterator[Array]:
    reader = FeatureReader()
    paths = sorted(path for path in Path(sysconfig.get_path("stdlib")).iterdir() if path.is_file())
    for path in paths:
        file = reader.read(path)
        if isinstance(file, ModelFile):
            yield np.ascontiguousarray(file.tokens, np.int32)


def _workload(
    name: str, model: str, input_name: str, tensors: list[Array], repository: Path, priorities: Sequence[int] = ()
) -> Workload:
    messages = []
    for number, array in enumerate(tensors):
        parameters = {"priority": priorities[number % len(priorities)]} if priorities else {}
        request = InferRequest(model, (Tensor.from_array(input_name, array),), id=PLACEHOLDER, parameters=parameters)
        messages.append(codec.encode_request(request))
    (id_at,) = {message.index(PLACEHOLDER.encode()) for message in messages}
    session: onnxruntime.InferenceSession = open_session(next((repository / model).glob("*/model.onnx")))
    answers = [session.run(None, {input_name: array})[0].ravel() for array in tensors]
    requests = np.stack([np.frombuffer(message, np.uint8) for message in messages])
    return Workload(name, requests, id_at, np.stack(answers).astype(np.float32))
