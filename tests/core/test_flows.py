"""Flows: compiled where they are needed."""

import pickle
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from anabranch.operators.core.flows.flows import Flows
from anabranch.schemas.model import FunctionSpec
from tests.core.test_flow import EVENT, MODEL, SPEC

FUNCTION = FunctionSpec("f.py", "abc", "of")


def of(events: list[dict[str, Any]]) -> dict[str, Any]:
    return {"x": np.zeros((len(events), 2), np.float32), "t": np.array(["a"] * len(events), object)}


def test_flows_of_a_topic_are_compiled_once() -> None:
    flows = Flows([(SPEC, MODEL)])
    assert flows
    assert not Flows()
    assert flows.of("payments") is flows.of("payments")
    assert flows.of("other") is None


def test_flows_after_pickling_are_the_same() -> None:
    flows = Flows([(SPEC, MODEL)])
    compiled = flows.of("payments")
    copy = pickle.loads(pickle.dumps(flows)).of("payments")
    assert compiled is not None
    assert copy.spec == compiled.spec
    assert copy.read(EVENT) == compiled.read(EVENT)


def test_flows_load_functions_at_once() -> None:
    spec = replace(SPEC, inputs=(), function=FUNCTION)
    loaded = []

    def load(function: FunctionSpec) -> Any:
        loaded.append(function)
        return of

    flows = pickle.loads(pickle.dumps(Flows([(spec, MODEL)])))
    writing = flows.of("payments")
    assert not writing.is_batchwise
    reading = flows.with_functions(load).of("payments")
    assert loaded == [FUNCTION]
    assert reading.read(EVENT)[1] == (b"\1\0\0\0a", ())


def test_flows_with_a_lost_function_raise_at_the_start() -> None:
    def load(function: FunctionSpec) -> Any:
        raise LookupError(function.path)

    with pytest.raises(LookupError, match=r"f\.py"):
        Flows([(replace(SPEC, inputs=(), function=FUNCTION), MODEL)]).with_functions(load)
