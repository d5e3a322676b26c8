"""Serves a model repository in this process, with the classes that Flink drives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.flink_job.config import Config, ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.outputs import Answer
from anabranch.schemas.messages import ErrorResponse, InferRequest, Parameter
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from anabranch.trial.local_run import LocalRun


class Served:
    """The models of a repository."""

    def __init__(self, repository: Path) -> None:
        self.catalog = read_repository(repository, ModelDefaults(), strict=True)
        self._run = LocalRun(Config(), self.catalog, (), OnnxBackend())
        self._asked = 0

    def ask(
        self, model: str, *inputs: Mapping[str, Any], **parameters: Parameter
    ) -> list[dict[str, Array] | ErrorResponse]:
        """The outputs for requests that are queued together, or their errors."""
        first = self._asked
        self._asked += len(inputs)
        requests = [
            (
                codec.encode_request(InferRequest(model, _tensors(each), f"{first + number}", "", parameters)),
                Source(0, first + number, 0),
            )
            for number, each in enumerate(inputs)
        ]
        answers = [codec.decode_response(each.value) for each in self._run.serve(requests) if isinstance(each, Answer)]
        found = {
            int(answer.id): answer
            if isinstance(answer, ErrorResponse)
            else {tensor.name: tensor.to_array() for tensor in answer.outputs}
            for answer in answers
        }
        return [found[first + number] for number in range(len(inputs))]


def _tensors(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor.from_array(name, np.array(value, dtype=object) if isinstance(value, list) else value)
        for name, value in inputs.items()
    )


def outputs_of(answers: Sequence[dict[str, Array] | ErrorResponse], name: str) -> list[Array]:
    """One output of each answer, none of which is an error."""
    found = []
    for answer in answers:
        assert isinstance(answer, dict), answer
        found.append(answer[name])
    return found
