"""Tensors round-trip without needless copies, and wrong sizes are refused."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.schemas.errors import MalformedRequest, WrongDatatype, WrongSize
from anabranch.schemas.tensors import (
    BYTES,
    DATATYPES,
    NUMPY_DTYPES,
    Tensor,
    bytes_elements,
    bytes_offsets,
    check_shape,
    datatype_of,
    raw_from_elements,
    raw_size_bytes,
)

SHAPES = [(), (1,), (0,), (3, 0, 2), (2, 3), (4, 1, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES))
def test_tensor_of_any_datatype_round_trips(datatype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(NUMPY_DTYPES[datatype])
    tensor = Tensor.from_array("x", array)
    assert (tensor.datatype, tensor.shape, len(tensor.data)) == (datatype, shape, raw_size_bytes(datatype, shape))
    back = tensor.to_array()
    assert back.dtype == array.dtype
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES))
def test_tensor_of_contiguous_array_is_a_view(datatype: str) -> None:
    array = np.ones((3, 4), NUMPY_DTYPES[datatype])
    tensor = Tensor.from_array("x", array)
    assert np.shares_memory(array, np.frombuffer(tensor.data, np.uint8))
    assert np.shares_memory(array, tensor.to_array())


def test_tensor_array_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Tensor("x", "FP32", (1,), bytes(4)).to_array()[0] = 1


def test_tensor_of_big_endian_strided_array_is_raw_layout() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    tensor = Tensor.from_array("x", array)
    assert tensor.datatype == "INT32"
    assert bytes(tensor.data) == np.array([[0, 4, 8], [2, 6, 10]], "<i4").tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensor_of_any_bytes_round_trips(shape: tuple[int, ...]) -> None:
    array = np.empty(shape, dtype=object)
    for number, index in enumerate(np.ndindex(*shape)):
        array[index] = (b"", b"\xff\xfe\x00", "ünï".encode(), b"\x80\x04.")[number % 4]
    tensor = Tensor.from_array("x", array)
    assert tensor.datatype == BYTES
    assert tensor.to_array().shape == shape
    assert tensor.to_array().tolist() == array.tolist()


def test_tensor_of_strings_is_utf8() -> None:
    for array in (np.array(["é", "b"]), np.array(["é", "b"], dtype=object), np.array(["é".encode(), b"b"])):
        assert bytes(Tensor.from_array("x", array).data) == b"\x02\0\0\0\xc3\xa9\x01\0\0\0b"


@pytest.mark.parametrize("element", [3, None, 1.5, 10**12, ["a"], "\ud800"], ids=repr)
def test_tensor_element_of_wrong_type_is_refused(element: object) -> None:
    array = np.empty(1, dtype=object)
    array[0] = element
    with pytest.raises(WrongDatatype):
        Tensor.from_array("x", array)


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "f4,i4"])
def test_datatype_of_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(WrongDatatype):
        datatype_of(np.dtype(dtype))


def test_tensor_of_unknown_datatype_is_refused() -> None:
    with pytest.raises(WrongDatatype, match="BF16"):
        Tensor("x", "BF16", (1,), b"\0\0").to_array()


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_tensor_data_of_wrong_size_are_refused(size: int) -> None:
    with pytest.raises(WrongSize, match="24"):
        Tensor("x", "FP32", (2, 3), bytes(size)).to_array()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_offsets_are_those_of_the_elements(elements: list[bytes]) -> None:
    data = raw_from_elements(elements)
    offsets = bytes_offsets(data, len(elements))
    assert [data[a + 4 : b] for a, b in pairwise(offsets)] == elements
    assert bytes_elements(memoryview(data), len(elements)) == elements


@given(st.binary(max_size=40), st.integers(0, 2**40))
def test_bytes_elements_random_data_are_read_or_refused(data: bytes, count: int) -> None:
    try:
        elements = bytes_elements(data, count)
    except WrongSize:
        return
    assert raw_from_elements(elements) == data


@pytest.mark.parametrize(
    "shape",
    [(-1,), (2, -3), (1,) * 65, (2**63,), (2**70, 0), (0, 2**62), (2**31, 2**31), (10**4000, 10**4000)],
    ids=lambda shape: f"rank {len(shape)}",
)
def test_check_shape_too_large_or_negative_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedRequest) as refused:
        check_shape("x", shape)
    assert len(refused.value.message) < 500


@given(st.lists(st.integers(0, 2**62), max_size=66), st.sampled_from(sorted(DATATYPES)))
def test_check_shape_accepted_shape_fits_numpy(shape: list[int], datatype: str) -> None:
    try:
        checked = check_shape("x", shape)
    except MalformedRequest:
        return
    if np.prod(shape, dtype=object) == 0:
        assert Tensor("x", datatype, checked, b"").to_array().shape == tuple(shape)


@pytest.mark.parametrize("values", [[b"ab\0\0", b"c"], ["ab\0", ""], [[b"\0"], [b"c\0"]], b"\0\0", ((b"a\0",),)])
def test_tensor_of_list_keeps_trailing_nuls(values: Any) -> None:
    tensor = Tensor.from_array("x", values)
    sent = np.array(values, dtype=object)
    assert tensor.shape == sent.shape
    expected = [each.encode() if isinstance(each, str) else each for each in sent.ravel().tolist()]
    assert tensor.to_array().ravel().tolist() == expected
