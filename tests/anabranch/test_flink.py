"""`infer` without Flink: elements to rows and back, and the models that a stream needs."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anabranch.flink import _ElementFlow, _ElementFlows, _Functions, _only, _row_of, _RowPacker
from anabranch.flink_job.errors import ConfigError
from anabranch.operators.core.flows.flow_spec import FlowSpec, OutputField
from anabranch.schemas.errors import AnabranchError, InferenceFailed, MappingFailed
from anabranch.schemas.model import TensorSpec
from tests.core.models import catalog

MODEL = catalog().find("rows", "10")
SPEC = FlowSpec(
    topic="elements",
    to="scored",
    model_name="rows",
    model_version="10",
    outputs=tuple(OutputField((output.name,), output.name) for output in MODEL.outputs),
)


def rows_of(element: Any) -> dict[str, Any]:
    return {"x": [element["a"], 2], "t": element["text"].encode()}


def paired(element: Any, outputs: dict[str, Any]) -> Any:
    return element, outputs


def flow(inputs: Any = rows_of, outputs: Any = paired) -> _ElementFlow:
    return _ElementFlow(SPEC, MODEL, _Functions(inputs, outputs, "elements"))


def element(**fields: Any) -> bytes:
    return pickle.dumps({"a": 1, "text": "ä", **fields})


def test_element_becomes_a_row_of_each_input() -> None:
    [(x, x_shape), (t, t_shape)] = flow().read(element())
    assert np.frombuffer(x, np.float32).tolist() == [1, 2]
    assert (x_shape, t, t_shape) == ((2,), b"\2\0\0\0\xc3\xa4", ())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"x": [1, 2]}, "inputs raised KeyError: 't'"),
        ({"x": [1, 2, 3], "t": b""}, r"inputs returned 'x' of shape \[3\], expected \[2\]: return one row"),
        ({"x": np.zeros(2), "t": b""}, "inputs returned 'x' as float64, expected FP32: convert it"),
        ({"x": ["a", "b"], "t": b""}, "inputs raised ValueError"),
        (None, "inputs raised TypeError"),
    ],
)
def test_element_with_faulty_rows_fails_alone(fault: Any, message: str) -> None:
    faulty = flow(lambda each: fault if each["a"] == 13 else rows_of(each))
    good, failed = faulty.read_all([element(), element(a=13)])
    assert isinstance(good, list)
    with pytest.raises(MappingFailed, match=message):
        raise failed if isinstance(failed, Exception) else AssertionError


def test_element_gets_its_row_of_each_output() -> None:
    made = flow()
    assert made.outputs == ("y", "label")
    rows = made.format({"y": np.array([[1, 2], [3, 4]], np.float32), "label": np.array([b"a", b"b"], object)})
    found, outputs = pickle.loads(made.write(element(), rows[1]))
    assert found == {"a": 1, "text": "ä"}
    assert (outputs["y"].tolist(), outputs["label"]) == ([3, 4], b"b")
    with pytest.raises(InferenceFailed, match="outputs raised ZeroDivisionError"):
        flow(outputs=lambda *_: 1 / 0).write(element(), rows[0])


def test_flows_of_elements_travel_with_their_functions() -> None:
    flows: Any = pickle.loads(pickle.dumps(_ElementFlows(SPEC, MODEL, _Functions(rows_of, paired, "elements"))))
    assert flows.with_functions(None).of("elements").read(element()) == flow().read(element())
    assert flows.of("others") is None


@pytest.mark.parametrize(("kind", "encoded", "found"), [("bytes", b"\xff1", b"\xff1"), ("texts", "ä1".encode(), "ä1")])
def test_bytes_and_texts_need_no_pickles(kind: str, encoded: bytes, found: Any) -> None:
    functions = _Functions(lambda each: {"x": [1, len(each)], "t": b""}, lambda each, _: each * 2, kind)
    # State may hold pickles of an earlier version.
    for topic, event in ((kind, encoded), ("elements", pickle.dumps(found))):
        made = _ElementFlows(SPEC, MODEL, functions).of(topic)
        assert made is not None
        [(x, _), _] = made.read(event)
        assert np.frombuffer(x, np.float32).tolist() == [1, 2]
        assert made.write(event, {}) == encoded * 2


def test_element_of_another_type_than_its_stream_fails() -> None:
    made = _ElementFlow(SPEC, MODEL, _Functions(rows_of, lambda *_: 5, "bytes"))
    with pytest.raises(InferenceFailed, match="it returned int, which output_type is not"):
        made.write(element(), {})


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT64", "UINT8"])
@pytest.mark.parametrize(
    "value", [[1, 2], (1.5, True), [None, 1], [np.float32(2), 3], [1e39, 0], [-1, 2], ["1", 2], [3]]
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_packed_rows_equal_those_of_numpy(datatype: str, value: Any) -> None:
    spec = TensorSpec("x", datatype, (None, 2))

    def outcome(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (AnabranchError, ValueError, TypeError, OverflowError) as error:
            return type(error), str(error)

    packed = outcome(lambda: _RowPacker(spec, MODEL).pack(value))
    assert packed == outcome(lambda: _row_of(spec, value, MODEL))


def test_only_the_models_of_a_stream_are_served() -> None:
    served = catalog(ensembles=True)
    assert list(_only(served, "rows@10").models) == ["rows"]
    assert set(_only(served, "mean").models) == {"mean", "rows", "less", "more"}
    with pytest.raises(ConfigError, match="unknown model 'fraud'"):
        _only(served, "fraud")
    with pytest.raises(ConfigError, match="unknown version '3'"):
        _only(served, "rows@3")
