"""The protocol behind both doors: asks the bridge, describes models, counts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anabranch.flink_job.model_summary import ModelSummary
from anabranch.gateway.bridge import Bridge
from anabranch.schemas.errors import AnabranchError, InvalidParameter
from anabranch.schemas.messages import Parameter
from anabranch.schemas.model import TensorSpec
from anabranch.served_models import ServedModels

NAME = "anabranch"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
PLATFORM = "onnxruntime_onnx"
#: For the job's own answer, which says that the deadline has passed.
_GRACE_S = 1.0
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
    """One gateway; `timeout_s` is the deadline of a request without one."""

    def __init__(self, bridge: Bridge, served: ServedModels, *, timeout_s: float) -> None:
        self.bridge = bridge
        self.served = served
        self._timeout_s = timeout_s
        self._counts: dict[tuple[str, str], tuple[_Counts, _Counts]] = defaultdict(lambda: (_Counts(), _Counts()))
        self._last_ms: dict[tuple[str, str], int] = {}

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

    async def ask(self, message: bytes, deadline_s: float) -> bytes:
        """Return the encoded answer to an encoded request, whose `timeout` is the deadline."""
        return await self.bridge.ask(message, deadline_s + _GRACE_S)

    def note(self, model: ModelSummary, started_ns: int, error: AnabranchError | None) -> None:
        """Count a request."""
        key = (model.name, model.version)
        self._counts[key][error is not None].add(started_ns)
        self._last_ms[key] = time.time_ns() // 1_000_000

    def index(self) -> list[dict[str, str]]:
        """Describe all models, as Triton's repository index."""
        return [
            {"name": each.name, "version": each.version, "state": "READY", "reason": ""}
            for versions in self.served.models.values()
            for each in versions.values()
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

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Count the requests of this gateway by model, as Triton does."""
        if name:
            models = [self.served.find(name, version)] if version else list(self._versions(name).values())
        else:
            models = [each for versions in self.served.models.values() for each in versions.values()]
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


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": [-1 if axis is None else axis for axis in spec.shape],
    }


def _configured(spec: TensorSpec, *, is_batched: bool) -> dict[str, Any]:
    dims = [-1 if axis is None else axis for axis in spec.shape]
    return {
        "name": spec.name,
        "data_type": _TRITON_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": dims[1:] if is_batched else dims,
    }
