"""Small models of many kinds, and their requests through the job's batching classes without an engine.

requests --> [ RequestPipeline ] -- answers
                  +-- shards --> [ InferenceTask ] --> [ Aggregator ] -- answers
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.parser

from anabranch.flink_job.config import ModelDefaults
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.operators.backends.base import Session
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.execution.inference_task import InferenceTask
from anabranch.operators.core.merging.aggregator import Aggregator
from anabranch.operators.core.outputs import Answer, Output, Shard, WindowPart
from anabranch.operators.core.requests import Request
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel
from anabranch.operators.core.scheduling.policy import SchedulingPolicy
from anabranch.operators.core.scheduling.request_pipeline import RequestPipeline
from anabranch.operators.core.scheduling.router import Router
from anabranch.schemas.frames import write_requests
from anabranch.schemas.messages import ErrorResponse, InferRequest
from anabranch.schemas.model import Catalog, ModelSpec
from anabranch.schemas.records import Source
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec

Feed: TypeAlias = Callable[[np.random.Generator, int], dict[str, Array]]
NOW_MS = 1_000_000.0
_HEAD = '<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1, "ai.onnx.ml" : 3]>\nm '


def floats(*shape: int, name: str = "x", dtype: str = "f4") -> Feed:
    """Rows of floats; the last row of a request is an outlier."""

    def feed(rng: np.random.Generator, rows: int) -> dict[str, Array]:
        x = rng.standard_normal((rows, *shape))
        x[-1] *= 100.0
        return {name: x.astype(dtype)}

    return feed


def integers(end: int, *shape: int, name: str = "i", low: int = 0) -> Feed:
    return lambda rng, rows: {name: rng.integers(low, end, (rows, *shape))}


def both(*feeds: Feed) -> Feed:
    return lambda rng, rows: {name: array for feed in feeds for name, array in feed(rng, rows).items()}


_FOUR = floats(4)


@dataclass(frozen=True)
class Kind:
    """A model.

    Attributes:
        text: Graph in ONNX's textual syntax.
        level: Expected verdict.
        feed: Inputs of a request.
        rows: Unit of rows of a request.
        toml: Content of `model.toml`.
        is_random: True if answers depend on more than the request.
    """

    text: str
    level: str
    feed: Feed = _FOUR
    rows: int = 1
    toml: str = ""
    is_random: bool = False


_WEIGHTS = "float[4,4] w = {" + ", ".join(str(round(0.3 * np.sin(at * 1.7), 3)) for at in range(16)) + "}"
_TABLE = "float[50,2] table = {" + ", ".join(str(round(np.sin(at * 0.9), 3)) for at in range(100)) + "}"
_LSTM = (
    "<float[1,4,2] W = {0.1,-0.2,0.3,0.4,-0.5,0.6,0.7,-0.8}, float[1,4,1] R = {0.5,-0.4,0.3,0.2}>"
    "{ Y = LSTM <hidden_size = 1> (X, W, R) }"
)
KINDS: dict[str, Kind] = {
    "dense": Kind(f"(float[N,4] x) => (float[N,4] y) <{_WEIGHTS}> {{ h = MatMul(x, w) y = Tanh(h) }}", "strangers"),
    "softmax of a row": Kind("(float[N,4] x) => (float[N,4] y) { y = Softmax <axis = 1> (x) }", "strangers"),
    "softmax over rows": Kind("(float[N,4] x) => (float[N,4] y) { y = Softmax <axis = 0> (x) }", "within request"),
    "running sum": Kind(
        "(float[N,4] x) => (float[N,4] y) <int64 zero = {0}> { y = CumSum (x, zero) }", "within request"
    ),
    "mean of rows": Kind(
        "(float[N,4] x) => (float[N,4] y) <int64[1] a = {0}> { m = ReduceMean <keepdims = 1> (x, a) y = Sub (x, m) }",
        "within request",
    ),
    "time major": Kind("(float[seq,1,2] X) => (float[seq,1,1,1] Y) " + _LSTM, "within request", floats(1, 2, name="X")),
    "batch on axis 1": Kind(
        "(float[T,B,2] X) => (float[T,1,B,1] Y) " + _LSTM, "within request", floats(3, 2, name="X")
    ),
    "batch norm in training": Kind(
        "(float[N,4] x) => (float[N,4] y) <float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0}, "
        "float[4] mean = {0,0,0,0}, float[4] var = {1,1,1,1}> "
        "{ y, rm, rv = BatchNormalization <training_mode = 1> (x, s, b, mean, var) }",
        "within request",
        is_random=True,  # Each run changes ONNX Runtime's mean and var.
    ),
    "non zero": Kind(
        "(float[N,4] x) => (int64[K,2] y) { r = Relu(x) z = NonZero (r) y = Transpose <perm = [1,0]> (z) }", "whole"
    ),
    "non zero, nameless": Kind(
        "(float[N,4] x) => (int64[?,2] y) { r = Relu(x) z = NonZero (r) y = Transpose <perm = [1,0]> (z) }", "whole"
    ),
    "unique": Kind("(float[N,4] x) => (float[?] y) { r = Round(x) y = Unique (r) }", "whole"),
    "suppression": Kind(
        "(float[N,4] x) => (int64[?,3] y) <int64[1] a = {0}, int64[3] s = {1,1,-1}, int64[1] k = {5}, "
        "float[1] t = {0.5}, "
        "float[4] c = {1,1,1,1}> "
        "{ b = Unsqueeze (x, a) q = MatMul (x, c) p = Reshape (q, s) y = NonMaxSuppression (b, p, k, t) }",
        "whole",
    ),
    "best row": Kind(
        "(float[N,4] x) => (float[?,4] y, int64[?,4] at) <int64[1] k = {1}> { y, at = TopK <axis = 0> (x, k) }", "whole"
    ),
    "sorted rows": Kind(
        "(float[N,4] x) => (float[N,4] y) <int64[1] z = {0}, int64[1] o = {1}> "
        "{ s = Shape (x) n = Slice (s, z, o) y, at = TopK <axis = 0> (x, n) }",
        "within request",
    ),
    "dynamic quantisation": Kind(
        "(float[N,4] x) => (float[N,2] y) <uint8[4,2] w = {1,2,3,4,5,6,7,8}> { q, s, z = DynamicQuantizeLinear (x) "
        "i = MatMulInteger (q, w, z) f = Cast <to = 1> (i) y = Mul (f, s) }",
        "within request",
    ),
    "dynamic quantisation, trusted": Kind(
        "(float[N,4] x) => (float[N,2] y) <uint8[4,2] w = {1,2,3,4,5,6,7,8}> { q, s, z = DynamicQuantizeLinear (x) "
        "i = MatMulInteger (q, w, z) f = Cast <to = 1> (i) y = Mul (f, s) }",
        "strangers",
        toml="[batching]\ntrust = true\n",
        is_random=True,
    ),
    "static quantisation": Kind(
        "(float[N,4] x) => (float[N,4] y) <float s = {0.05}, uint8 z = {128}> "
        "{ q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }",
        "strangers",
    ),
    "noise": Kind(
        "(float[N,4] x) => (float[N,4] y) { r = RandomNormalLike (x) y = Add (x, r) }", "within request", is_random=True
    ),
    "dropout in training": Kind(
        "(float[N,4] x) => (float[N,4] y) <float p = {0.5}, bool t = {1}> { y = Dropout (x, p, t) }",
        "within request",
        is_random=True,
    ),
    "loop over rows": Kind(
        "(float[N,4] x) => (float[N,4] y) <float[4] zero = {0,0,0,0}> { last, y = Scan <num_scan_inputs = 1, body = b "
        "(float[4] s, float[4] e) => (float[4] t, float[4] o) { u = Add (s, e) t = Tanh (u) o = Identity (t) }> "
        "(zero, x) }",
        "within request",
    ),
    "number for the batch": Kind("(float[N,4] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }", "whole"),
    "one output by row, one by batch": Kind(
        "(float[N,4] x) => (float[N,4] y, float[?,4] m) <int64[1] a = {0}> "
        "{ y = Relu (x) m = ReduceMax <keepdims = 1> (x, a) }",
        "whole",
    ),
    "fixed batch": Kind("(float[4,4] x) => (float[4,4] y) { y = Softmax <axis = 0> (x) }", "within request", rows=4),
    "only above 40 rows": Kind(
        "(float[N,4] x) => (float[N,4] y) <int64[1] a = {0}, int64 i = {0}, int64 most = {40}> { s = Shape (x) "
        "n = Gather (s, i) c = Greater (n, most) m = ReduceMean <keepdims = 1> (x, a) d = Sub (x, m) "
        "y = Where (c, d, x) }",
        "within request",
    ),
    "only beside an outlier": Kind(
        "(float[N,4] x) => (float[N,4] y) <float most = {90}> { m = ReduceMax <keepdims = 0> (x) c = Greater (m, most) "
        "d = Tanh (x) y = Where (c, d, x) }",
        "within request",
    ),
    "twins": Kind(
        "(float[N,4] x) => (float[N,4] y) <int64[1] one = {1}, int64[1] zero = {0}> "
        "{ u, f, v, c = Unique <axis = 0> (x) "
        "s = Gather (c, v) t = Unsqueeze (s, one) k = Cast <to = 1> (t) y = Div (x, k) }",
        "within request",
        lambda rng, rows: {"x": np.ones((rows, 4), "f4")},
    ),
    "best of each column": Kind("(float[N,4] x) => (int64[4] y) { y = ArgMax <axis = 0, keepdims = 0> (x) }", "whole"),
    "tokens": Kind(
        f"(int64[N,S] i) => (float[N,S,2] y) <{_TABLE}> {{ y = Gather (table, i) }}", "strangers", integers(50, 6)
    ),
    "only for high ids": Kind(
        f"(int64[N] i) => (float[N,2] y) <{_TABLE}, int64 most = {{20}}> {{ e = Gather (table, i) "
        "m = ReduceMax <keepdims = 0> (i) c = Greater (m, most) d = Tanh (e) y = Where (c, d, e) }",
        "within request",
        integers(50),
    ),
    "masked text": Kind(
        f"(int64[N,S] i, int64[N,S] attention_mask) => (float[N,2] y) <{_TABLE}, "
        "int64[1] a = {1}, int64[1] b = {2}> "
        "{ e = Gather (table, i) f = Cast <to = 1> (attention_mask) m = Unsqueeze (f, b) p = Mul (e, m) "
        "s = ReduceSum <keepdims = 0> (p, a) n = ReduceSum <keepdims = 1> (f, a) y = Div (s, n) }",
        "strangers",
        both(integers(50, 6), integers(2, 6, name="attention_mask", low=1)),
    ),
    "lengths": Kind(
        "(float[N,T] x, int64[N] n) => (float[N,T] y) { y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n) }",
        "strangers",
        both(floats(5), integers(6, name="n", low=1)),
    ),
    "padded to the longest": Kind(
        "(float[N,4] x, int64[N] n) => (float[N,4] y) <int64[1] a = {1}> { m = ReduceMax <keepdims = 0> (n) "
        "r = Cast <to = 1> (n) l = Cast <to = 1> (m) q = Div (r, l) p = Unsqueeze (q, a) y = Mul (x, p) }",
        "within request",
        both(floats(4), integers(9, name="n", low=1)),
    ),
    "pixels": Kind(
        "(uint8[N,3,H,W] x) => (float[N,3] y) <int64[2] a = {2,3}> "
        "{ f = Cast <to = 1> (x) y = ReduceMean <keepdims = 0> (f, a) }",
        "strangers",
        lambda rng, rows: {"x": rng.integers(0, 256, (rows, 3, 5, 6)).astype("u1")},
    ),
    "one hot": Kind(
        "(int64[N] i) => (float[N,9] y) <int64 d = {9}, float[2] v = {0,1}> { y = OneHot (i, d, v) }",
        "strangers",
        integers(9),
    ),
    "text": Kind(
        "(string[N,2] s) => (string[N,2] t) { t = Identity (s) }",
        "strangers",
        lambda rng, rows: {"s": rng.choice(np.array([b"a", b"bc", "ü".encode()], object), (rows, 2))},
    ),
    "booleans": Kind(
        "(bool[N,4] x) => (bool[N,4] y) { y = Not (x) }",
        "strangers",
        lambda rng, rows: {"x": rng.random((rows, 4)) > 0.5},
    ),
    "halves": Kind(
        "(float16[N,4] x) => (float16[N,4] y) { h = Tanh (x) y = Add (h, x) }", "strangers", floats(4, dtype="f2")
    ),
    "doubles": Kind("(double[N,4] x) => (double[N,4] y) { y = Tanh (x) }", "strangers", floats(4, dtype="f8")),
    "two inputs": Kind(
        "(float[N,4] x, float[N,4] z) => (float[N,4] y) { y = Add (x, z) }",
        "strangers",
        both(floats(4), floats(4, name="z")),
    ),
    "all pairs": Kind(
        "(float[N,4] x, float[N,4] z) => (float[N,?] y) { t = Transpose <perm = [1,0]> (z) y = MatMul (x, t) }",
        "within request",
        both(floats(4), floats(4, name="z")),
    ),
    "two axes": Kind(
        "(float[seq,4] x, float[N,4] z) => (float[seq,4] y) { y = Add (x, z) }",
        "whole",
        both(floats(4), floats(4, name="z")),
    ),
    "counted detections": Kind("(float[N,4] x) => (float[num_dets,4] y) { y = Relu (x) }", "whole"),
    "counted rows": Kind(
        "(float[N,4] x) => (float[num_dets,4] y) { y = Relu (x) }", "strangers", toml="[batching]\nenabled = true\n"
    ),
    "scalar beside rows": Kind(
        "(float[N,4] x, float k) => (float[N,4] y) { y = Mul (x, k) }",
        "whole",
        both(floats(4), lambda rng, rows: {"k": np.array(2.0, "f4")}),
    ),
    "any rank": Kind("(float x) => (float y) { y = Relu (x) }", "whole"),
    "default input": Kind("(float[N,4] x, float k = {3}) => (float[N,4] y) { y = Mul (x, k) }", "strangers"),
    "empty axis": Kind(
        "(float[N,0] e, float[N,4] x) => (float[N,4] y) { y = Concat <axis = 1> (x, e) }",
        "strangers",
        both(floats(0, name="e"), floats(4)),
    ),
    "always the same": Kind("(float[N,4] x) => (float[N,4] y) { y = Sub (x, x) }", "whole"),
    "never runs": Kind(
        "(int64[N] i) => (float[N,4] y) <float[1,4] t = {1,2,3,4}, int64 a = {5000}> "
        "{ j = Sub (i, a) y = Gather (t, j) }",
        "whole",
        integers(5001, low=5000),
    ),
}


def write_kind(folder: Path, kind: Kind, name: str = "m") -> None:
    """Writes `NAME/1/model.onnx`."""
    model = onnx.parser.parse_model(_HEAD + kind.text)
    if kind is KINDS["any rank"]:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.ClearField("shape")
    (folder / name / "1").mkdir(parents=True)
    onnx.save(model, folder / name / "1" / "model.onnx")
    if kind.toml:
        (folder / name / "model.toml").write_text(kind.toml)


def read(folder: Path) -> Catalog:
    return read_repository(folder, ModelDefaults(), strict=True)


class Company:
    """Serves requests together, in one task and one exchange."""

    def __init__(self, served: Catalog) -> None:
        self._sessions: dict[str, Session] = {}
        self._writer = ResponseWriter("requests", 10_000_000, lambda: NOW_MS)
        policy = SchedulingPolicy()
        self.batches: list[int] = []
        self.meter = self._writer.meter
        self._inference = InferenceTask(served, self._session_of, self._writer, 0)
        self._admission = Admission(served, 10_000_000, 5, self._writer.defects)
        self.router = Router(served, lambda _: BatchCostModel())
        self._pipeline = RequestPipeline(
            self._admission,
            self.router,
            self._inference,
            self._writer,
            policy,
        )
        self._aggregator = Aggregator(self._writer, policy, lambda: 0.0, lambda: NOW_MS, run=1)

    def admit(self, model: str, feed: Mapping[str, Array]) -> Request:
        """Admits one request."""
        tensors = tuple(Tensor.from_array(name, array) for name, array in feed.items())
        message = codec.encode_request(InferRequest(model, tensors, "0"))
        request = self._admission.admit(message, Source(0, 0, int(NOW_MS)), NOW_MS)
        assert isinstance(request, Request)
        return request

    def answer(self, model: str, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | str]:
        """Answers in the order of requests; an error is its text."""
        records = []
        for number, feed in enumerate(feeds):
            tensors = tuple(Tensor.from_array(name, array) for name, array in feed.items())
            request = InferRequest(model, tensors, str(number))
            records.append((codec.encode_request(request), Source(0, number, int(NOW_MS))))
        queue = self._pipeline.new_queue()
        outputs: list[Output] = [*self._pipeline.admit(write_requests(records), queue, NOW_MS)]
        while (more := self._pipeline.run_next(queue, NOW_MS, all_is_due=True)) is not None:
            outputs += more
        answers: dict[str, dict[str, Array] | str] = {}
        for output in self._merged(outputs):
            response = codec.decode_response(output.value)
            if isinstance(response, ErrorResponse):
                answers[response.id] = response.message
            else:
                answers[response.id] = {each.name: each.to_array() for each in response.outputs}
        return [answers[str(number)] for number in range(len(feeds))]

    def _merged(self, outputs: Sequence[Output]) -> list[Answer]:
        answers = [output for output in outputs if isinstance(output, Answer)]
        parts = [output for output in outputs if isinstance(output, WindowPart)]
        for output in outputs:
            if isinstance(output, Shard):
                parts += [
                    part for part in self._inference.on_exchange(output.value, NOW_MS) if isinstance(part, WindowPart)
                ]
        windows: dict[str, bytes | None] = {}
        kept: dict[str, list[bytes]] = {}
        for part in parts:
            held = kept.setdefault(part.key, [])
            update = self._aggregator.on_record(part.value, windows.get(part.key), held.copy)
            windows[part.key] = update.snapshot
            if update.keep is not None:
                held.append(update.keep)
            answers += [output for output in update.outputs if isinstance(output, Answer)]
        return answers

    def _session_of(self, model: ModelSpec) -> Session:
        if model.path not in self._sessions:
            self._sessions[model.path] = _Counted(OnnxBackend().load(model), self.batches)
        return self._sessions[model.path]


class _Counted:
    def __init__(self, session: Session, batches: list[int]) -> None:
        self._session = session
        self._batches = batches

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        self._batches.append(max((array.shape[0] for array in inputs.values() if array.ndim), default=1))
        return self._session.run(outputs, inputs)


def alone(model: ModelSpec, feed: Mapping[str, Array]) -> dict[str, Any]:
    """Outputs of ONNX Runtime for one request; a fixed batch runs as often as needed."""
    session = OnnxBackend().load(model)
    names = [spec.name for spec in model.outputs]
    step = model.fixed_rows
    rows = next(iter(feed.values())).shape[0] if step else 0
    if not step:
        return dict(zip(names, session.run(names, feed), strict=True))
    runs = [
        session.run(names, {name: array[at : at + step] for name, array in feed.items()}) for at in range(0, rows, step)
    ]
    return {name: np.concatenate([run[index] for run in runs]) for index, name in enumerate(names)}
