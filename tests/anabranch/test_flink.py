"""`infer` without Flink: elements to rows and back, and the models that a stream needs."""

import pickle
from typing import Any

import numpy as np
import pytest

from anabranch.flink import _ElementFlow, _ElementFlows, _only
from anabranch.flink_job.errors import ConfigError
from anabranch.operators.core.flows.flow_spec import FlowSpec, OutputField
from anabranch.schemas.errors import InferenceFailed, MappingFailed
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
    return _ElementFlow(SPEC, MODEL, inputs, outputs)


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
    flows: Any = pickle.loads(pickle.dumps(_ElementFlows(SPEC, MODEL, rows_of, paired)))
    assert flows.with_functions(None).of("elements").read(element()) == flow().read(element())
    assert flows.of("others") is None


def test_only_the_models_of_a_stream_are_served() -> None:
    served = catalog(ensembles=True)
    assert list(_only(served, "rows@10").models) == ["rows"]
    assert set(_only(served, "mean").models) == {"mean", "rows", "less", "more"}
    with pytest.raises(ConfigError, match="unknown model 'fraud'"):
        _only(served, "fraud")
    with pytest.raises(ConfigError, match="unknown version '3'"):
        _only(served, "rows@3")
