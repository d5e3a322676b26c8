"""Makes what a person gets: the answer to a request, and the dead letter beside every failure."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from operators.core.merging import format_ranges
from schemas import codec
from schemas.dead_letters import encode_letter
from schemas.errors import AnabranchError, ResponseTooLarge, UnreadableRequest
from schemas.messages import ErrorResponse, InferResponse, Parameter
from schemas.records import Failure, Kind, Record, Source, decode_signature
from schemas.tensors import Buffer, Tensor


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
        try:
            value = codec.encode_response(response, request.form)
            if len(value) > self._max_message_bytes:
                message = f"the answer has {len(value)} bytes; kafka.max_message_bytes is {self._max_message_bytes}"
                raise ResponseTooLarge(message)
        except AnabranchError as error:
            stage = "aggregate" if request.kind is Kind.OPENING else "infer"
            return self.fail(request, Failure(error.code, error.message, stage))
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

    def bury(self, unknown: Buffer, failure: Failure) -> Letter:
        """The dead letter of bytes that were to be a record of ours and are none, so that nobody can be answered."""
        return self._write("", Source(-1, -1, -1), failure, unknown)

    def _letter(self, request: Record, failure: Failure) -> Letter:
        return self._write(request.id, request.source, failure, request.original)

    def _write(self, request_id: str, source: Source, failure: Failure, original: Buffer) -> Letter:
        fitting = original if len(original) <= self._max_message_bytes else None
        return Letter(request_id.encode(), encode_letter(self._requests_topic, source, request_id, failure, fitting))

    def _named(self, request: Record, failure: Failure) -> Failure:
        if failure.model_name or request.kind is Kind.REJECTION:
            return failure  # its signature is the failure itself
        signature = decode_signature(request.signature)
        return Failure(failure.code, failure.message, failure.stage, signature.model_name, signature.model_version)


def _partial_parameters(missing: Iterable[tuple[int, int]], failure: Failure) -> Mapping[str, Parameter]:
    return {
        "missing_rows": format_ranges(missing),
        "error_code": failure.code,
        "error_message": failure.message,
    }
