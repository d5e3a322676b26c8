"""The peers' common work: parse a request, run the session, write the answer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.schemas.tensors import Array
from bench.systems.onnx_session import open_session

_DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "INT32": np.int32}


class DirectModels:
    """The models of a repository: one input and one output, raw contents, no checks."""

    def __init__(self, repository: Path) -> None:
        self._sessions: dict[str, onnxruntime.InferenceSession] = {
            path.parent.parent.name: open_session(path) for path in repository.glob("*/*/model.onnx")
        }
        self._inputs = {name: session.get_inputs()[0].name for name, session in self._sessions.items()}
        self._outputs = {name: session.get_outputs()[0].name for name, session in self._sessions.items()}

    def answer(self, message: bytes) -> bytes:
        """Return the answer to one request."""
        request = ModelInferRequest.FromString(message)
        tensor = request.inputs[0]
        rows = np.frombuffer(request.raw_input_contents[0], _DTYPES[tensor.datatype]).reshape(tensor.shape)
        return self._encode(request, self._run(request.model_name, rows))

    def answer_batch(self, messages: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return the id and answer of each request; those of one model run as one batch."""
        waiting: dict[str, list[ModelInferRequest]] = {}
        for message in messages:
            request = ModelInferRequest.FromString(message)
            waiting.setdefault(request.model_name, []).append(request)
        return [pair for name, requests in waiting.items() for pair in self._answer_together(name, requests)]

    def _answer_together(self, name: str, requests: list[ModelInferRequest]) -> list[tuple[bytes, bytes]]:
        tensor = requests[0].inputs[0]
        raw = b"".join([request.raw_input_contents[0] for request in requests])
        scores = self._run(name, np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(-1, *tensor.shape[1:]))
        answers, first = [], 0
        for request in requests:
            end = first + request.inputs[0].shape[0]
            answers.append((request.id.encode(), self._encode(request, scores[first:end])))
            first = end
        return answers

    def _run(self, name: str, rows: Array) -> Array:
        scores: Array = self._sessions[name].run(None, {self._inputs[name]: rows})[0]
        return scores

    def _encode(self, request: ModelInferRequest, scores: Array) -> bytes:
        response = ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name=self._outputs[request.model_name], datatype="FP32", shape=scores.shape)
        response.raw_output_contents.append(scores.tobytes())
        return response.SerializeToString()
