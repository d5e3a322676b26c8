"""InputMapping: values of fields to raw tensors."""

import math
from typing import Any

import numpy as np
import pytest

from anabranch.operators.core.flows.event_reader import MISSING
from anabranch.operators.core.flows.flow_spec import FieldSpec, InputSpec
from anabranch.operators.core.flows.input_mapping import InputMapping
from anabranch.schemas.errors import InvalidField, MissingField
from anabranch.schemas.tensors import array_from_raw

NAN = float("nan")


def field(name: str = "a", kind: Any = "plain", **rest: Any) -> FieldSpec:
    return FieldSpec((name,), kind, **rest)


def mapped(
    datatype: str, shape: tuple[int | None, ...], fields: list[FieldSpec], *values: Any, whole: bool = False
) -> Any:
    raw, found = InputMapping(InputSpec("x", datatype, shape, tuple(fields), whole)).map(values)
    return array_from_raw(datatype, found, raw).tolist()


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "expected"),
    [
        ("FP32", (3,), (1, 2.5, True), [1.0, 2.5, 1.0]),
        ("FP32", (None,), (1, 2), [1.0, 2.0]),
        ("FP64", (1, 2), (0.1, 10**30), [[0.1, 1e30]]),
        ("FP16", (), (0.5,), 0.5),
        ("INT64", (2,), (-(2**63), 3.0), [-(2**63), 3]),
        ("UINT8", (2,), (255, False), [255, 0]),
        ("BOOL", (2,), (True, False), [True, False]),
        ("BYTES", (2,), ("é", ""), ["é".encode(), b""]),
    ],
)
def test_mapping_stacked_fields_fill_the_row(datatype: str, shape: Any, values: Any, expected: Any) -> None:
    assert mapped(datatype, shape, [field() for _ in values], *values) == expected


@pytest.mark.parametrize(
    ("datatype", "value", "message"),
    [
        ("FP32", "1.5", "field 'a' is \"1.5\", expected a number"),
        ("FP32", [1], "is a list, expected a number"),
        ("FP32", 1e39, "is 1e39, expected a number in the range of FP32"),
        ("FP16", 70000, "expected a number in the range of FP16"),
        ("INT32", 1.5, "is 1.5, expected an integer"),
        ("INT32", 2**31, "expected a number in the range of INT32"),
        ("UINT8", -1, "expected a number in the range of UINT8"),
        ("BOOL", 1, "is 1, expected true or false"),
        ("BYTES", 1, "is 1, expected a text"),
        ("BYTES", {"b": 1}, "is an object, expected a text"),
    ],
)
def test_mapping_wrong_value_is_named(datatype: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidField) as raised:
        mapped(datatype, (1,), [field()], value)
    assert message in str(raised.value)


@pytest.mark.parametrize("value", [None, MISSING])
def test_mapping_missing_value_follows_its_rule(value: Any) -> None:
    with pytest.raises(MissingField, match=r"field 'a' is (null|missing)"):
        mapped("FP32", (1,), [field()], value)
    assert mapped("FP32", (2,), [field(default=-1), field("b")], value, 3) == [-1.0, 3.0]
    [nan] = mapped("FP32", (1,), [field(default=NAN)], value)
    assert math.isnan(nan)
    assert mapped("BYTES", (1,), [field(default="none")], value) == [b"none"]
    assert mapped("BOOL", (1,), [field(default=True)], value) == [True]
    assert mapped("INT32", (1,), [field(kind="enum", values=("x", "y"), default=-1)], value) == [-1]


def test_mapping_enum_gives_the_place_of_the_text() -> None:
    country = field(kind="enum", values=("DE", "FR"))
    assert mapped("FP32", (1,), [country], "FR") == [1.0]
    for value in ("IT", 1, ["FR"]):
        with pytest.raises(InvalidField, match="expected one of DE, FR"):
            mapped("FP32", (1,), [country], value)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("1970-01-02T00:00:00Z", "s", 86400),
        ("1970-01-02T01:00:00+01:00", "h", 24),
        ("1970-01-01T00:00:01.500", "ms", 1500),
        ("1969-12-31T00:00:00Z", "d", -1),
        ("1970-01-01T01:00:00Z", "min", 60),
    ],
)
def test_mapping_timestamp_counts_from_1970(value: str, unit: str, expected: float) -> None:
    assert mapped("FP64", (1,), [field(kind="timestamp", unit=unit)], value) == [expected]
    assert mapped("INT64", (1,), [field(kind="timestamp", unit=unit)], value) == [expected]


@pytest.mark.parametrize("value", ["yesterday", "2026-13-01T00:00:00Z", 17, True, ["2026-01-01T00:00:00Z"]])
def test_mapping_other_timestamp_is_refused(value: Any) -> None:
    with pytest.raises(InvalidField, match="expected a timestamp"):
        mapped("FP64", (1,), [field(kind="timestamp")], value)


@pytest.mark.parametrize(
    ("datatype", "shape", "value", "expected"),
    [
        ("FP32", (2, 2), [[1, 2], [3, 4.5]], [[1.0, 2.0], [3.0, 4.5]]),
        ("FP32", (None,), [], []),
        ("INT64", (None,), [1, 2, 3], [1, 2, 3]),
        ("FP32", (None, 2), [[1, 2]], [[1.0, 2.0]]),
        ("BYTES", (None,), ["a", "bc"], [b"a", b"bc"]),
        ("FP32", (None,), 7, [7.0]),
        ("FP32", (None,), [1, None], [1.0, -1.0]),
        ("FP32", (2,), None, [-1.0, -1.0]),
    ],
)
def test_mapping_whole_field_gives_the_tensor(datatype: str, shape: Any, value: Any, expected: Any) -> None:
    default: Any = "none" if datatype == "BYTES" else -1
    assert mapped(datatype, shape, [field(default=default)], value, whole=True) == expected


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((3,), [1, 2], r"has shape \[2\], expected \[3\]"),
        ((2,), [[1, 2]], r"has shape \[1, 2\], expected \[2\]"),
        ((None, 2), [[1, 2], [3]], "parts differ in size"),
        ((2,), 3, r"has shape \[\], expected \[2\]"),
        ((2,), {"0": 1}, "is an object, expected a number"),
        ((2,), ["1", "2"], 'is "1", expected a number'),
        ((2,), [1, 1e39], "has an element out of the range of FP32"),
        ((2,), [1, [2]], "is a list, expected a number"),
    ],
)
def test_mapping_wrong_whole_field_is_named(shape: Any, value: Any, message: str) -> None:
    with pytest.raises(InvalidField, match=message):
        mapped("FP32", shape, [field()], value, whole=True)


def test_mapping_null_element_without_default_is_refused() -> None:
    with pytest.raises(MissingField, match="field 'a' is null"):
        mapped("FP32", (2,), [field()], [1, None], whole=True)


def test_mapping_base64_gives_bytes_and_arrays() -> None:
    picture = field(kind="base64")
    assert mapped("BYTES", (1,), [picture], "AAE=") == [b"\0\1"]
    assert mapped("UINT8", (None,), [picture], "AAEC", whole=True) == [0, 1, 2]
    assert mapped("FP32", (2,), [picture], "AACAPwAAAEA=", whole=True) == [1.0, 2.0]
    for value in ("AAE", "A A=", "é", 7, "AA=E"):
        with pytest.raises(InvalidField, match="expected bytes in base64"):
            mapped("BYTES", (1,), [picture], value)
    with pytest.raises(InvalidField, match=r"has 3 bytes, expected FP32 \[2\]"):
        mapped("FP32", (2,), [picture], "AAEC", whole=True)


def test_mapping_raw_of_a_row_is_little_endian() -> None:
    raw, shape = InputMapping(InputSpec("x", "FP32", (2,), (field(), field("b")))).map((1, 2))
    assert (raw, shape) == (np.array([1, 2], "<f4").tobytes(), (2,))
