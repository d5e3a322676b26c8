"""Models without ONNX for the tests of the core, and requests for them.

    rows    x FP32 [n, 2], t BYTES [n]  ->  y FP32 [n, 2] = 2x + 1, label BYTES [n] = t reversed     any rows at once
    pairs   x FP32 [2, 2]               ->  y FP32 [2, 2] = 2x + 1                                   two rows at a time
    whole   x FP32 [any]                ->  y FP32 [any] = running sum                               no batch axis
    cut     `rows`, in stages (below)                                                                any rows at once
    sums    x FP32 [n, 2]               ->  y FP32 [n, 2] = running sum of rows                      rows of one request
    long    x FP32 [n, any]             ->  y FP32 [n] = sum of a row, h FP32 [n, any] = 2x + 1      padded

`rows`, `pairs`, `long` and `sums` fail on a row that starts with `POISON`, `whole` on any `POISON`.

`ensembles=True` adds two models with the inputs and outputs of `rows`, and three ensembles of all of them:

    less    y = x - 1, label = t              fails on -2        mean     of y; no member may be missing
    more    y = 4x, label = t reversed        fails on -3        vote     of label; two must be there
                                                                 stack    of y; one must be there, within 30 ms

    x, t --> [ 1: h = 2x ] -- x, t, h --> [ 2: label = t reversed, or poison ] -- h, label --> [ 3: y = h + 1 ]
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from anabranch.operators.backends.fake import FakeSession
from anabranch.schemas.messages import Encoding, InferRequest, Parameter
from anabranch.schemas.model import Batching, BatchingVerdict, Catalog, Ensemble, ModelSpec, StageSpec, TensorSpec
from anabranch.schemas.padding import Padding
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec

POISON = -1.0
NOW_MS = 1_000_000.0
SOURCE = Source(0, 0, int(NOW_MS))
MAX_MESSAGE_BYTES = 1_000_000
PADDING = Padding((("x", 1, 0.0),), (("h", 1),), 0.9)
#: Value on which each member fails.
POISON_OF = {"rows": POISON, "less": -2.0, "more": -3.0}
MEMBERS = (("rows", "10"), ("less", "1"), ("more", "1"))
ENSEMBLES = {
    "mean": Ensemble(MEMBERS, "mean", (1.0, 1.0, 1.0), needed=3),
    "vote": Ensemble(MEMBERS, "vote", (1.0, 1.0, 1.0), needed=2),
    "stack": Ensemble(MEMBERS, "stack", (1.0, 1.0, 1.0), needed=1, member_timeout_ms=30),
}


def now_ms() -> float:
    """A clock that stands still."""
    return NOW_MS


def catalog(
    batching: Batching | None = None,
    *,
    by_model: Mapping[str, Batching] | None = None,
    without: Sequence[str] = (),
    require_finite: bool = False,
    ensembles: bool = False,
) -> Catalog:
    """The models above; `rows` in the versions 1, 2 and 10.

    Args:
        by_model: Batching of models that differ from the others.
    """
    batching = batching or Batching(shard_rows=4, max_rows=8)
    x, t = TensorSpec("x", "FP32", (None, 2)), TensorSpec("t", "BYTES", (None,))
    y, label = TensorSpec("y", "FP32", (None, 2)), TensorSpec("label", "BYTES", (None,))
    pair, vector = (2, 2), (None,)

    def model(
        name: str,
        version: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        ensemble: Ensemble | None = None,
    ) -> ModelSpec:
        return ModelSpec(
            name=name,
            version=version,
            path=f"{name}/{version}",
            sha256="",
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            batchable=name != "whole",
            padding=PADDING if name == "long" else None,
            verdict=BatchingVerdict(level="within request" if name == "sums" else "strangers"),
            fixed_rows=2 if name == "pairs" else None,
            batching=(by_model or {}).get(name, batching),
            require_finite=require_finite,
            ensemble=ensemble,
        )

    models = {
        "rows": {version: model("rows", version, (x, t), (y, label)) for version in ("1", "2", "10")},
        "pairs": {"1": model("pairs", "1", [TensorSpec("x", "FP32", pair)], [TensorSpec("y", "FP32", pair)])},
        "whole": {"1": model("whole", "1", [TensorSpec("x", "FP32", vector)], [TensorSpec("y", "FP32", vector)])},
    }
    ragged = TensorSpec("x", "FP32", (None, None))
    outputs = [TensorSpec("y", "FP32", (None,)), TensorSpec("h", "FP32", (None, None))]
    models |= {"sums": {"1": model("sums", "1", (x,), (y,))}, "long": {"1": model("long", "1", (ragged,), outputs)}}
    if ensembles:
        # Each member has its own order of inputs.
        models |= {name: {"1": model(name, "1", (t, x), (label, y))} for name in ("less", "more")}
        stacked = TensorSpec("y", "FP32", (None, None, 2))
        for name, output in (("mean", y), ("vote", label), ("stack", stacked)):
            models[name] = {"1": model(name, "1", (x, t), (output,), ENSEMBLES[name])}
    h = TensorSpec("h", "FP32", (None, 2))
    cut = replace(
        model("cut", "1", (x, t), (y, label)),
        stages=(
            StageSpec("cut/1", "", (x,), (h,)),
            StageSpec("cut/2", "", (t, x), (label,)),
            StageSpec("cut/3", "", (h,), (y,)),
        ),
    )
    models["cut"] = {"1": cut}
    return Catalog({name: versions for name, versions in models.items() if name not in without})


def run_less(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Computes `less`."""
    if (inputs["x"][:, 0] == POISON_OF["less"]).any():
        raise ValueError("poison")
    return {"y": inputs["x"] - 1, "label": inputs["t"]}


def run_more(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Computes `more`."""
    if (inputs["x"][:, 0] == POISON_OF["more"]).any():
        raise ValueError("poison")
    return {"y": inputs["x"] * 4, "label": np.array([text[::-1] for text in inputs["t"]], dtype=object)}


def run_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Computes `rows` and `pairs`."""
    x = inputs["x"]
    if (x[:, 0] == POISON).any():
        raise ValueError("poison")
    outputs = {"y": 2 * x + 1}
    if "t" in inputs:
        outputs["label"] = np.array([text[::-1] for text in inputs["t"]], dtype=object)
    return outputs


def run_sums(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Computes `sums`."""
    if (inputs["x"][:, 0] == POISON).any():
        raise ValueError("poison")
    return {"y": np.cumsum(inputs["x"], axis=0, dtype=np.float32)}


def run_long(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Computes `long`."""
    x = inputs["x"]
    if (x[:, 0] == POISON).any():
        raise ValueError("poison")
    return {"y": x.sum(axis=1), "h": 2 * x + 1}


def run_whole(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Computes `whole`."""
    if (inputs["x"] == POISON).any():
        raise ValueError("poison")
    return {"y": np.cumsum(inputs["x"], dtype=np.float32)}


def _run_first(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"h": 2 * inputs["x"]}


def _run_second(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"label": run_rows(inputs)["label"]}


def _run_third(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": inputs["h"] + 1}


_STAGES = {"cut/1": _run_first, "cut/2": _run_second, "cut/3": _run_third}


def session_of(model: ModelSpec) -> FakeSession:
    """A session of a model above, or of a stage."""
    by_name = {"whole": run_whole, "sums": run_sums, "long": run_long, "less": run_less, "more": run_more}
    return FakeSession(_STAGES.get(model.path) or by_name.get(model.name, run_rows))


def tensors_of(model: str, values: Sequence[float]) -> tuple[Tensor, ...]:
    """Inputs of a model: a row (or, for `whole`, an element) for each value."""
    x = np.array(values, np.float32)
    if model == "whole":
        return (Tensor.from_array("x", x),)
    if model == "long":
        length = 1 + int(max(map(abs, values), default=0) // 100) % 7  # of a request: its values are close
        return (Tensor.from_array("x", np.repeat(x[:, None], length, axis=1)),)
    rows = Tensor.from_array("x", np.stack([x, x / 2], axis=1))
    if model in {"pairs", "sums"}:
        return (rows,)
    return rows, Tensor.from_array("t", np.array([f"row {value}" for value in values], dtype=object))


def expected(model: str, values: Sequence[float]) -> dict[str, list[object]]:
    """Outputs of a request with these values."""
    inputs = {tensor.name: tensor.to_array() for tensor in tensors_of(model, values)}
    outputs = {"whole": run_whole, "sums": run_sums, "long": run_long}.get(model, run_rows)(inputs)
    return {name: array.tolist() for name, array in outputs.items()}


def expected_of_members(ensemble: str, values: Sequence[float], members: Sequence[int]) -> list[object]:
    """Rows of the only output of an ensemble, made of some members."""
    rows: list[object] = []
    for value in values:
        x = np.array([value, value / 2], np.float32)
        text = f"row {value}".encode()
        ys = [(2 * x + 1, x - 1, 4 * x)[member] for member in members]
        if ensemble == "vote":
            labels = [(text[::-1], text, text[::-1])[member] for member in members]
            rows.append(max(labels, key=labels.count))
        elif ensemble == "stack":
            rows.append([y.tolist() for y in ys])
        else:
            rows.append([float(np.float32(sum(float(y[axis]) for y in ys) / len(ys))) for axis in (0, 1)])
    return rows


def request(
    model: str = "rows",
    values: Sequence[float] = (1.0,),
    *,
    request_id: str = "a",
    encoding: Encoding = Encoding.PROTOBUF,
    version: str = "",
    parameters: Mapping[str, Parameter] | None = None,
    outputs: tuple[str, ...] = (),
) -> bytes:
    """Value of a Kafka record."""
    inputs = tensors_of(model, values)
    return codec.encode_request(InferRequest(model, inputs, request_id, version, parameters or {}, outputs, encoding))
