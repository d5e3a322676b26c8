"""The protocol behind both doors: asks the bridge, describes models, counts."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from anabranch.flink_job.model_summary import ModelSummary
from anabranch.gateway.bridge import Bridge
from anabranch.messaging.errors import ClientClosed, NoAnswer
from anabranch.schemas.errors import (
    AnabranchError,
    DeadlineExceeded,
    InvalidParameter,
    Overloaded,
    UnreadableRequest,
    error_with_code,
)
from anabranch.schemas.limits import MIB
from anabranch.schemas.messages import Parameter
from anabranch.schemas.model import TensorSpec
from anabranch.schemas.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from anabranch.schemas.wire import protobuf_wire
from anabranch.served_models import ServedModels

if TYPE_CHECKING:
    from anabranch.gateway.tracing import Traced, Tracer

NAME = "anabranch"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
PLATFORM = "onnxruntime_onnx"
MAX_HELD_BYTES = 512 * MIB
#: For the job's own answer, which says that the deadline has passed.
_GRACE_S = 1.0
#: The job keeps what it learnt of a message's head, so that few deadlines differ.
_DEADLINE_STEP_S = 0.01
_TRITON_TYPES = {"BYTES": "TYPE_STRING"}


@dataclass
class _Counts:
    count: int = 0
    ns: int = 0

    def add(self, started_ns: int) -> None:
        self.count += 1
        self.ns += time.perf_counter_ns() - started_ns

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class ModelService:
    """One gateway.

    Args:
        timeout_s: Deadline of a request without one.
        max_held_bytes: Bytes of all requests that the gateway holds; more are refused.
        tracer: Makes spans of sampled requests.
    """

    def __init__(
        self,
        bridge: Bridge,
        served: ServedModels,
        *,
        timeout_s: float,
        max_held_bytes: int = MAX_HELD_BYTES,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self.bridge = bridge
        self.served = served
        self._timeout_s = timeout_s
        self._counts: dict[tuple[str, str], tuple[_Counts, _Counts]] = defaultdict(lambda: (_Counts(), _Counts()))
        self._last_ms: dict[tuple[str, str], int] = {}

    def hold(self, size_bytes: int) -> None:
        """Count bytes of a request; `release` them at its end.

        Raises:
            Overloaded: The gateway holds too many.
        """
        if self._held_bytes + size_bytes > self._max_held_bytes:
            raise Overloaded(f"the gateway holds {self._held_bytes} bytes of requests: send the request again later")
        self._held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Forget bytes of a request."""
        self._held_bytes -= size_bytes

    @property
    def is_ready(self) -> bool:
        """True while answers are read and a model is known."""
        return self.bridge.is_alive and bool(self.served.models)

    def deadline_s(self, parameters: Mapping[str, Parameter], stated_s: float | None) -> float:
        """Return the time for a request: the least of its parameter `timeout`, its header and the gateway's."""
        timeout_us = parameters.get("timeout", 0)
        if type(timeout_us) is not int or timeout_us < 0:
            raise InvalidParameter(
                f"parameter timeout is {timeout_us!r}, expected microseconds: send a positive integer"
            )
        limits = [limit for limit in (timeout_us / 1e6 or None, stated_s) if limit is not None]
        return max(1e-6, min([*limits, self._timeout_s]))

    def trace(self, model: ModelSummary, door: str, traceparent: str | None) -> Traced | None:
        """Begin the span of a request; None if it is not sampled."""
        if self._tracer is None:
            return None
        attributes = {"anabranch.model": model.name, "anabranch.version": model.version, "anabranch.door": door}
        return self._tracer.begin(f"infer {model.name}", traceparent, attributes)

    async def ask(self, message: bytes, deadline_s: float, traced: Traced | None = None) -> bytes:
        """Return the encoded answer to an encoded request, whose `timeout` is the deadline."""
        if traced is not None:
            message = traced.sent(message)
        try:
            answer = await self.bridge.ask(message, deadline_s + _GRACE_S)
        except NoAnswer as error:
            raise DeadlineExceeded(error.message) from None
        if traced is not None:
            traced.answered(answer)
        return answer

    async def ask_encoded(
        self, message: bytes, left_s: float | None, door: str, traceparent: str | None = None
    ) -> bytes:
        """Return the answer to an encoded `ModelInferRequest`; decodes no tensor.

        Appends deadline, model and id of the gateway to the message, and the caller's id to the answer: the last of
        repeated fields counts.

        Raises:
            AnabranchError: The request failed.
        """
        envelope = protobuf_wire.open_envelope(message)
        head = _head(envelope.head)
        model = self.served.find(head.model_name, head.model_version)
        started_ns, error = time.perf_counter_ns(), None
        traced = self.trace(model, door, traceparent)
        self.hold(len(message))
        try:
            limit_s = self.deadline_s(protobuf_wire.read_parameters(head.parameters), left_s)
            limit_s = math.ceil(limit_s / _DEADLINE_STEP_S) * _DEADLINE_STEP_S
            more = ModelInferRequest(model_name=model.name, model_version=model.version)
            more.parameters["timeout"].int64_param = round(limit_s * 1e6)
            answer = await self.ask(message + more.SerializeToString(deterministic=True), limit_s, traced)
            _raise_error_in(answer)
            return answer + protobuf_wire.write_id(message[slice(*envelope.id_at)])
        except AnabranchError as caught:
            error = caught
            raise
        except asyncio.CancelledError:
            error = ClientClosed("the caller hung up")
            raise
        finally:
            self.release(len(message))
            self.note(model, started_ns, error, traced)

    def note(
        self, model: ModelSummary, started_ns: int, error: AnabranchError | None, traced: Traced | None = None
    ) -> None:
        """Count a request, and end its span."""
        if traced is not None:
            traced.end(error)
        key = (model.name, model.version)
        self._counts[key][error is not None].add(started_ns)
        self._last_ms[key] = time.time_ns() // 1_000_000

    def index(self) -> list[dict[str, str]]:
        """Describe all models, as Triton's repository index."""
        return [
            {"name": each.name, "version": each.version, "state": "READY", "reason": ""} for each in self.served.all()
        ]

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Describe a model as the protocol does."""
        model = self.served.find(name, version)
        return {
            "name": model.name,
            "versions": list(self.served.models[name]),
            "platform": PLATFORM,
            "inputs": [_described(spec) for spec in model.inputs],
            "outputs": [_described(spec) for spec in model.outputs],
        }

    def config(self, name: str, version: str) -> dict[str, Any]:
        """Describe a model as Triton's configuration does."""
        model = self.served.find(name, version)
        batching = model.batching
        rows = (batching.fixed_rows or batching.max_rows or 0) if batching.is_batchable else 0
        return {
            "name": model.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "max_batch_size": rows,
            "input": [_configured(spec, is_batched=rows > 0) for spec in model.inputs],
            "output": [_configured(spec, is_batched=rows > 0) for spec in model.outputs],
        }

    def row_company(self, name: str, version: str) -> str:
        """Tell whose rows may share a request: `any`, its `own`, or `none` without an axis of rows."""
        batching = self.served.find(name, version).batching
        if not batching.is_batchable:
            return "none"
        return "any" if batching.fixed_rows is not None or batching.verdict.level == "strangers" else "own"

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Count the requests of this gateway by model, as Triton does."""
        if name:
            models = [self.served.find(name, version)] if version else list(self._versions(name).values())
        else:
            models = self.served.all()
        return {"model_stats": [self._statistics(model) for model in models]}

    def _versions(self, name: str) -> Mapping[str, ModelSummary]:
        self.served.find(name)
        return self.served.models[name]

    def _statistics(self, model: ModelSummary) -> dict[str, Any]:
        key = (model.name, model.version)
        success, fail = self._counts[key]
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": self._last_ms.get(key, 0),
            "inference_count": success.count,
            "inference_stats": {"success": success.shown(), "fail": fail.shown()},
        }


def _head(encoded: bytes) -> ModelInferRequest:
    try:
        return ModelInferRequest.FromString(encoded)
    except DecodeError:
        raise UnreadableRequest("a field has invalid protobuf: send a whole ModelInferRequest") from None


def _raise_error_in(answer: bytes) -> None:
    if protobuf_wire.has_field(answer, ModelInferResponse.OUTPUTS_FIELD_NUMBER):
        return
    response = ModelInferResponse.FromString(answer)
    if "error_code" in response.parameters:
        parameters = response.parameters
        raise error_with_code(parameters["error_code"].string_param, parameters["error_message"].string_param)


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": _dims(spec)}


def _configured(spec: TensorSpec, *, is_batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _TRITON_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": _dims(spec)[1 if is_batched else 0 :],
    }


def _dims(spec: TensorSpec) -> list[int]:
    return [-1 if axis is None else axis for axis in spec.shape]
