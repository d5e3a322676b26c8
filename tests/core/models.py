"""Models without ONNX for the tests of the core: what they compute, and requests for them.

    rows    x FP32 [n, 2], t BYTES [n]  ->  y FP32 [n, 2] = 2x + 1, label BYTES [n] = t reversed     any rows at once
    pairs   x FP32 [2, 2]               ->  y FP32 [2, 2] = 2x + 1                                   two rows at a time
    whole   x FP32 [any]                ->  y FP32 [any] = running sum                               no batch axis

`rows` and `pairs` fail on a row that starts with `POISON`, whatever its neighbours are; `whole` where one is anywhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from operators.backends.fake import FakeSession
from schemas import codec
from schemas.messages import Form, InferRequest, Parameter
from schemas.model import Batching, Catalog, ModelSpec, TensorSpec
from schemas.records import Source
from schemas.tensors import Array, Tensor

POISON = -1.0
NOW_MS = 1_000_000.0
SOURCE = Source(0, 0, int(NOW_MS))
MAX_MESSAGE_BYTES = 1_000_000


def now_ms() -> float:
    """A clock that stands still."""
    return NOW_MS


def catalog(
    batching: Batching | None = None,
    *,
    by_model: Mapping[str, Batching] | None = None,
    without: Sequence[str] = (),
    require_finite: bool = False,
) -> Catalog:
    """The models above; `rows` in the versions 1, 2 and 10.

    Args:
        by_model: The batching of a model that differs from the others.
    """
    batching = batching or Batching(shard_rows=4, max_rows=8)
    x, t = TensorSpec("x", "FP32", (None, 2)), TensorSpec("t", "BYTES", (None,))
    y, label = TensorSpec("y", "FP32", (None, 2)), TensorSpec("label", "BYTES", (None,))
    pair, vector = (2, 2), (None,)

    def model(name: str, version: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> ModelSpec:
        return ModelSpec(
            name=name,
            version=version,
            path=f"{name}/{version}",
            sha256="",
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            batchable=name != "whole",
            fixed_rows=2 if name == "pairs" else None,
            batching=(by_model or {}).get(name, batching),
            require_finite=require_finite,
        )

    models = {
        "rows": {version: model("rows", version, (x, t), (y, label)) for version in ("1", "2", "10")},
        "pairs": {"1": model("pairs", "1", [TensorSpec("x", "FP32", pair)], [TensorSpec("y", "FP32", pair)])},
        "whole": {"1": model("whole", "1", [TensorSpec("x", "FP32", vector)], [TensorSpec("y", "FP32", vector)])},
    }
    return Catalog({name: versions for name, versions in models.items() if name not in without})


def run_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What `rows` and `pairs` compute."""
    x = inputs["x"]
    if (x[:, 0] == POISON).any():
        raise ValueError("poison")
    outputs = {"y": 2 * x + 1}
    if "t" in inputs:
        outputs["label"] = np.array([text[::-1] for text in inputs["t"]], dtype=object)
    return outputs


def run_whole(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What `whole` computes."""
    if (inputs["x"] == POISON).any():
        raise ValueError("poison")
    return {"y": np.cumsum(inputs["x"], dtype=np.float32)}


def session_of(model: ModelSpec) -> FakeSession:
    """A session of a model above."""
    return FakeSession(run_whole if model.name == "whole" else run_rows)


def tensors_of(model: str, values: Sequence[float]) -> tuple[Tensor, ...]:
    """Inputs of a model: a row (or, for `whole`, an element) for each value."""
    x = np.array(values, np.float32)
    if model == "whole":
        return (Tensor.from_array("x", x),)
    rows = Tensor.from_array("x", np.stack([x, x / 2], axis=1))
    if model == "pairs":
        return (rows,)
    return rows, Tensor.from_array("t", np.array([f"row {value}" for value in values], dtype=object))


def expected(model: str, values: Sequence[float]) -> dict[str, list[object]]:
    """The outputs that a request of these values must get."""
    inputs = {tensor.name: tensor.to_array() for tensor in tensors_of(model, values)}
    outputs = run_whole(inputs) if model == "whole" else run_rows(inputs)
    return {name: array.tolist() for name, array in outputs.items()}


def request(
    model: str = "rows",
    values: Sequence[float] = (1.0,),
    *,
    request_id: str = "a",
    form: Form = Form.PROTOBUF,
    version: str = "",
    parameters: Mapping[str, Parameter] | None = None,
    outputs: tuple[str, ...] = (),
) -> bytes:
    """A Kafka record's value."""
    inputs = tensors_of(model, values)
    return codec.encode_request(InferRequest(model, inputs, request_id, version, parameters or {}, outputs, form))
