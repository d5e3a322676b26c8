"""The peers' common work: parse a request, run the session, write the answer."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.schemas.tensors import Array
from bench.systems.onnx_session import has_open_rows, open_session

_DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}


class DirectModels:
    """The models of a repository: one output, raw contents, no checks."""

    def __init__(self, repository: Path) -> None:
        self._sessions: dict[str, onnxruntime.InferenceSession] = {
            path.parent.parent.name: open_session(path) for path in repository.glob("*/*/model.onnx")
        }
        self._outputs = {name: session.get_outputs()[0].name for name, session in self._sessions.items()}
        #: Models whose rows have many shapes.
        self._open = {name for name, session in self._sessions.items() if has_open_rows(session)}

    def answer(self, message: bytes) -> bytes:
        """Return the answer to one request."""
        request = ModelInferRequest.FromString(message)
        inputs = {
            tensor.name: np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        return self._encode(request, self._run(request.model_name, inputs))

    def answer_batch(self, messages: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return the id and answer of each request; those of one model and shape run as one batch."""
        waiting: dict[Hashable, list[ModelInferRequest]] = {}
        for message in messages:
            request = ModelInferRequest.FromString(message)
            waiting.setdefault(self._key_of(request), []).append(request)
        return [pair for requests in waiting.values() for pair in self._answer_together(requests)]

    def _key_of(self, request: ModelInferRequest) -> Hashable:
        name = request.model_name
        return (name, *[tuple(tensor.shape[1:]) for tensor in request.inputs]) if name in self._open else name

    def _answer_together(self, requests: list[ModelInferRequest]) -> list[tuple[bytes, bytes]]:
        inputs = {}
        for index, tensor in enumerate(requests[0].inputs):
            raw = b"".join([request.raw_input_contents[index] for request in requests])
            inputs[tensor.name] = np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(-1, *tensor.shape[1:])
        scores = self._run(requests[0].model_name, inputs)
        answers, first = [], 0
        for request in requests:
            end = first + request.inputs[0].shape[0]
            answers.append((request.id.encode(), self._encode(request, scores[first:end])))
            first = end
        return answers

    def _run(self, name: str, inputs: dict[str, Array]) -> Array:
        scores: Array = self._sessions[name].run(None, inputs)[0]
        return scores

    def _encode(self, request: ModelInferRequest, scores: Array) -> bytes:
        response = ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name=self._outputs[request.model_name], datatype="FP32", shape=scores.shape)
        response.raw_output_contents.append(scores.tobytes())
        return response.SerializeToString()
