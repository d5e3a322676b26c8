"""Makes what a person gets: the answer to a request, and the dead letter beside every failure."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from operators.core.merging import format_ranges
from schemas import codec
from schemas.dead_letters import encode_letter
from schemas.errors import ResponseTooLarge, UnreadableRequest
from schemas.messages import ErrorResponse, InferResponse, Parameter
from schemas.records import Failure, Record, decode_signature
from schemas.tensors import Tensor

#: base64 needs 4 bytes for 3; the rest of a letter is small.
LETTER_OVERHEAD_BYTES = 64 * 1024


class Answer(NamedTuple):
    """Key and value of a record for the responses topic."""

    key: bytes
    value: bytes


class Letter(NamedTuple):
    """Key and value of a record for the errors topic."""

    key: bytes
    value: bytes


class Answering:
    """Writes answers and dead letters.

    Args:
        requests_topic: Named in dead letters.
        max_message_bytes: The largest answer.
    """

    def __init__(self, requests_topic: str, max_message_bytes: int) -> None:
        self._requests_topic = requests_topic
        self._max_message_bytes = max_message_bytes

    def serve(
        self,
        request: Record,
        outputs: tuple[Tensor, ...],
        *,
        missing: Iterable[tuple[int, int]] = (),
        failure: Failure | None = None,
        shards: int = 1,
        tasks: int = 1,
    ) -> list[Answer | Letter]:
        """The answer to a request that was served, or served in part.

        Args:
            request: A REQUEST or OPENING.
            missing: Row ranges that are not in the outputs.
            failure: Why they are missing; it is also put into a dead letter.
        """
        signature = decode_signature(request.signature)
        parameters: dict[str, Parameter] = {}
        if request.explain:
            parameters |= {"shards": shards, "tasks": tasks}
        if failure is not None:
            parameters |= _partial_parameters(missing, failure)
        response = InferResponse(signature.model_name, signature.model_version, request.id, outputs, parameters)
        value = codec.encode_response(response, request.form)
        if len(value) > self._max_message_bytes:
            message = f"the answer has {len(value)} bytes; kafka.max_message_bytes is {self._max_message_bytes}"
            return self.fail(request, Failure(ResponseTooLarge.code, message, "infer"))
        answers: list[Answer | Letter] = [Answer(request.id.encode(), value)]
        if failure is not None:
            answers.append(self._letter(request, self._named(request, failure)))
        return answers

    def fail(self, request: Record, failure: Failure) -> list[Answer | Letter]:
        """The error that answers a request (nobody, where it could not be read), and its dead letter."""
        named = self._named(request, failure)
        letter = self._letter(request, named)
        if failure.code == UnreadableRequest.code:
            return [letter]
        response = ErrorResponse(request.id, named.code, named.message, named.model_name, named.model_version)
        return [Answer(request.id.encode(), codec.encode_response(response, request.form)), letter]

    def _letter(self, request: Record, failure: Failure) -> Letter:
        original = request.original if len(request.original) <= self._max_message_bytes else None
        letter = encode_letter(self._requests_topic, request.source, request.id, failure, original)
        return Letter(request.id.encode(), letter)

    def _named(self, request: Record, failure: Failure) -> Failure:
        if failure.model_name or failure.stage == "admit":
            return failure  # what admit refuses has no signature to name a model
        signature = decode_signature(request.signature)
        return Failure(failure.code, failure.message, failure.stage, signature.model_name, signature.model_version)


def _partial_parameters(missing: Iterable[tuple[int, int]], failure: Failure) -> Mapping[str, Parameter]:
    return {
        "missing_rows": format_ranges(missing),
        "error_code": failure.code,
        "error_message": failure.message,
    }
