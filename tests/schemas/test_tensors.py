"""Tensors: what goes in comes out, nothing is copied that need not be, and wrong sizes are refused."""

from itertools import pairwise

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
def test_an_array_of_any_datatype_comes_back_equal(datatype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(NUMPY_DTYPES[datatype])
    tensor = Tensor.from_array("x", array)
    assert (tensor.datatype, tensor.shape, len(tensor.data)) == (datatype, shape, raw_size_bytes(datatype, shape))
    back = tensor.to_array()
    assert back.dtype == array.dtype
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES))
def test_a_contiguous_array_is_never_copied(datatype: str) -> None:
    array = np.ones((3, 4), NUMPY_DTYPES[datatype])
    tensor = Tensor.from_array("x", array)
    assert np.shares_memory(array, np.frombuffer(tensor.data, np.uint8))
    assert np.shares_memory(array, tensor.to_array())


def test_an_array_out_of_a_message_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Tensor("x", "FP32", (1,), bytes(4)).to_array()[0] = 1


def test_big_endian_and_strided_arrays_travel_little_endian_and_row_major() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    tensor = Tensor.from_array("x", array)
    assert tensor.datatype == "INT32"
    assert bytes(tensor.data) == np.array([[0, 4, 8], [2, 6, 10]], "<i4").tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_of_any_kind_come_back_equal(shape: tuple[int, ...]) -> None:
    array = np.empty(shape, dtype=object)
    for number, index in enumerate(np.ndindex(*shape)):
        array[index] = (b"", b"\xff\xfe\x00", "ünï".encode(), b"\x80\x04.")[number % 4]
    tensor = Tensor.from_array("x", array)
    assert tensor.datatype == BYTES
    assert tensor.to_array().shape == shape
    assert tensor.to_array().tolist() == array.tolist()


def test_strings_travel_as_utf8() -> None:
    for array in (np.array(["é", "b"]), np.array(["é", "b"], dtype=object), np.array(["é".encode(), b"b"])):
        assert bytes(Tensor.from_array("x", array).data) == b"\x02\0\0\0\xc3\xa9\x01\0\0\0b"


@pytest.mark.parametrize("element", [3, None, 1.5, 10**12, ["a"], "\ud800"], ids=repr)
def test_what_is_neither_bytes_nor_text_is_refused(element: object) -> None:
    array = np.empty(1, dtype=object)
    array[0] = element
    with pytest.raises(WrongDatatype):
        Tensor.from_array("x", array)


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "f4,i4"])
def test_a_dtype_that_the_protocol_lacks_is_refused(dtype: str) -> None:
    with pytest.raises(WrongDatatype):
        datatype_of(np.dtype(dtype))


def test_an_unknown_datatype_is_refused() -> None:
    with pytest.raises(WrongDatatype, match="BF16"):
        Tensor("x", "BF16", (1,), b"\0\0").to_array()


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_data_of_another_size_than_the_shape_is_refused(size: int) -> None:
    with pytest.raises(WrongSize, match="24"):
        Tensor("x", "FP32", (2, 3), bytes(size)).to_array()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_offsets_lie_where_the_elements_do(elements: list[bytes]) -> None:
    data = raw_from_elements(elements)
    offsets = bytes_offsets(data, len(elements))
    assert [data[a + 4 : b] for a, b in pairwise(offsets)] == elements
    assert bytes_elements(memoryview(data), len(elements)) == elements


@given(st.binary(max_size=40), st.integers(0, 2**40))
def test_any_bytes_hold_the_elements_or_are_refused(data: bytes, count: int) -> None:
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
def test_a_shape_that_no_array_can_have_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedRequest) as refused:
        check_shape("x", shape)
    assert len(refused.value.message) < 500


@given(st.lists(st.integers(0, 2**62), max_size=66), st.sampled_from(sorted(DATATYPES)))
def test_a_shape_that_passes_is_one_that_numpy_can_hold(shape: list[int], datatype: str) -> None:
    try:
        checked = check_shape("x", shape)
    except MalformedRequest:
        return
    if np.prod(shape, dtype=object) == 0:
        assert Tensor("x", datatype, checked, b"").to_array().shape == tuple(shape)
