"""FlowSpec: it travels to the tasks."""

import pickle

import msgspec

from anabranch.operators.core.flows.flow_spec import UNITS_S, FieldSpec, FlowSpec, InputSpec, OutputField


def test_spec_of_a_flow_survives_pickling() -> None:
    field = FieldSpec(("user", 0), "enum", values=("a",))
    spec = FlowSpec(
        topic="a",
        to="b",
        model_name="m",
        model_version="1",
        inputs=(InputSpec("x", "FP32", (None,), (field,)),),
        outputs=(OutputField(("p",), "y", (1,)),),
    )
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec
    assert copy.inputs[0].fields[0].default is msgspec.UNSET


def test_units_of_timestamps_have_their_seconds() -> None:
    assert UNITS_S == {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 24 * 3600}
