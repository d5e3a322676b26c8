"""Requests of different lengths in one batch."""

import numpy as np
import pytest

from anabranch.operators.core.execution.padded_batch import by_length, cut_back, gather, with_neighbours
from anabranch.operators.core.merging.row_ranges import RowBlock
from anabranch.operators.core.requests import Request
from anabranch.schemas.padding import Padding
from anabranch.schemas.signatures import Signature, TensorSignature, decode_signature, encode_signature
from anabranch.schemas.tensors import Array, Tensor

PADDING = Padding((("ids", 1, 9.0), ("mask", 1, 0.0)), (("y", 1),), 0.5)


def signature(length: int, mask: int | None = None, depth: int = 2) -> Signature:
    inputs = (
        TensorSignature("ids", "INT64", (length,)),
        TensorSignature("mask", "FP32", (length if mask is None else mask, depth)),
        TensorSignature("k", "FP64", ()),
    )
    return Signature("m", "1", inputs, ("y",))


def tensors(rows: int, length: int) -> list[bytes]:
    ids = np.full((rows, length), length, np.int64)
    return [ids.tobytes(), np.ones((rows, length, 2), "f4").tobytes(), np.arange(rows, dtype="f8").tobytes()]


def test_signature_of_neighbours_is_shared() -> None:
    shared = with_neighbours(PADDING, signature(5))
    assert shared == with_neighbours(PADDING, signature(6))
    assert shared.inputs[0].shape[0] >= 6
    assert shared.inputs[2] == signature(5).inputs[2]
    assert shared != with_neighbours(PADDING, signature(60))


@pytest.mark.parametrize("odd", [signature(5, mask=4), signature(0), signature(5, depth=0)])
def test_signature_without_a_length_stays_exact(odd: Signature) -> None:
    assert with_neighbours(PADDING, odd) == odd


def test_gather_fills_up_to_the_longest() -> None:
    shared = with_neighbours(PADDING, signature(6))
    padded = gather(PADDING, shared, [(1, tensors(1, 5)), (2, tensors(2, 6))])
    assert padded.lengths == (5, 6)
    assert padded.arrays["ids"].tolist() == [[5] * 5 + [9], [6] * 6, [6] * 6]
    assert padded.arrays["mask"].shape == (3, 6, 2)
    assert padded.arrays["mask"][0, 5].tolist() == [0, 0]
    assert padded.arrays["k"].tolist() == [0, 0, 1]
    assert (padded.filled, padded.elements) == (1 + 2, 18 + 36)


def test_gather_of_one_length_fills_nothing() -> None:
    padded = gather(PADDING, with_neighbours(PADDING, signature(5)), [(1, tensors(1, 5)), (1, tensors(1, 5))])
    assert (padded.filled, padded.arrays["ids"].shape) == (0, (2, 5))


def test_outputs_are_cut_back_to_the_length() -> None:
    y: Array = np.arange(12, dtype="f4").reshape(2, 3, 2)
    block = RowBlock(4, 2, (Tensor.from_array("y", y), Tensor.from_array("z", y)))
    shorter = cut_back(PADDING, block, 2)
    assert (shorter.first_row, shorter.rows) == (4, 2)
    assert shorter.outputs[0].to_array().tolist() == y[:, :2].tolist()
    assert shorter.outputs[1] == block.outputs[1]


def test_requests_divided_by_length_have_exact_signatures() -> None:
    shared = encode_signature(with_neighbours(PADDING, signature(6)))
    requests = [
        Request(shared, 1, rows, 5, 0, id=str(at), tensors=tuple(tensors(rows, length)))
        for at, (rows, length) in enumerate([(1, 5), (2, 6), (3, 5)])
    ]
    parts = list(by_length(PADDING, requests))
    assert [[each.id for each in part] for part in parts] == [["0", "2"], ["1"]]
    assert [decode_signature(part[0].signature) for part in parts] == [signature(5), signature(6)]
