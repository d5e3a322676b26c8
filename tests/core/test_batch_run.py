"""run_batch: one call for a good batch; a bad one fails exactly the rows at fault."""

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.backends.base import Session
from anabranch.operators.backends.fake import FakeSession
from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.batch_run import PartOutcome, run_batch
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.requests import Request
from anabranch.schemas.errors import RunTooLong
from anabranch.schemas.messages import InferRequest
from anabranch.schemas.model import Catalog, ModelSpec, TensorSpec
from anabranch.schemas.signatures import decode_signature
from anabranch.schemas.tensors import Array, Tensor
from anabranch.schemas.wire import codec
from tests.core.models import (
    MAX_MESSAGE_BYTES,
    NOW_MS,
    POISON,
    SOURCE,
    catalog,
    expected,
    now_ms,
    request,
    run_rows,
    session_of,
    tensors_of,
)


def admitted(message: bytes, served: Catalog) -> Request:
    found = Admission(served, MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(message, SOURCE, NOW_MS)
    assert isinstance(found, Request)
    return found


def unit(model: str, *requests: list[float], **options: Any) -> tuple[list[Request], ModelSpec, FakeSession]:
    served = catalog()
    spec = served.find(model, "")
    return [admitted(request(model, values, **options), served) for values in requests], spec, session_of(spec)


def run_unit(unit: list[Request], spec: ModelSpec, session: Session) -> Sequence[PartOutcome]:
    batch = run_batch(unit, decode_signature(unit[0].signature), spec, session, now_ms, Defects(Meter()))
    outcomes = batch.outcomes()
    if batch.whole is not None:  # the same rows by either method
        first = 0
        for each, outcome in zip(unit, outcomes, strict=True):
            [good] = outcome.good
            assert batch.whole.raw_between(first, first + each.rows) == [tensor.data for tensor in good.outputs]
            assert batch.whole.described(each.rows) == tuple((t.name, t.datatype, t.shape) for t in good.outputs)
            first += each.rows
    return outcomes


def rows_of(outcome: PartOutcome) -> dict[int, dict[str, object]]:
    """Row -> its outputs."""
    rows: dict[int, dict[str, object]] = {}
    for part in outcome.good:
        arrays = {tensor.name: tensor.to_array() for tensor in part.outputs}
        for row in range(part.rows):
            assert part.first_row + row not in rows
            rows[part.first_row + row] = {name: array.tolist()[row] for name, array in arrays.items()}
    return rows


def expected_rows(model: str, values: list[float]) -> dict[int, dict[str, object]]:
    return {
        row: {name: outputs[0] for name, outputs in expected(model, [value]).items()}
        for row, value in enumerate(values)
        if value != POISON
    }


def test_batch_runs_in_one_call_and_splits_its_rows() -> None:
    requests = [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]
    records, spec, session = unit("rows", *requests)
    outcomes = run_unit(records, spec, session)
    assert session.batches == [6]
    assert [rows_of(outcome) for outcome in outcomes] == [expected_rows("rows", values) for values in requests]
    assert all(not outcome.bad and len(outcome.good) == 1 for outcome in outcomes)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5))
def test_batch_fails_exactly_the_rows_at_fault(poisoned: list[list[bool]]) -> None:
    requests = [[POISON if bad else float(n) for n, bad in enumerate(flags)] for flags in poisoned]
    records, spec, session = unit("rows", *requests)
    outcomes = run_unit(records, spec, session)
    for values, outcome in zip(requests, outcomes, strict=True):
        assert rows_of(outcome) == expected_rows("rows", values)
        assert sorted(bad.first_row for bad in outcome.bad) == [n for n, v in enumerate(values) if v == POISON]
        assert all((bad.rows, bad.message) == (1, "poison") for bad in outcome.bad)


@pytest.mark.parametrize("rows", [2, 8, 64, 256])
def test_batch_with_one_bad_row_takes_logarithmic_calls(rows: int) -> None:
    for place in (0, rows // 2, rows - 1):
        values = [float(n) for n in range(rows)]
        values[place] = POISON
        records, spec, session = unit("rows", values)
        run_unit(records, spec, session)
        assert len(session.batches) == 1 + 2 * log2(rows)


@given(st.lists(st.sampled_from([1.0, 2.0, POISON]), min_size=1, max_size=5))
def test_batch_of_fixed_size_runs_and_fails_whole_batches(batches: list[float]) -> None:
    values = [value for batch in batches for value in (7.0, batch)]
    records, spec, session = unit("pairs", values)
    [outcome] = run_unit(records, spec, session)
    assert session.batches == [2] * len(batches)
    good = {2 * n + k for n, batch in enumerate(batches) for k in (0, 1) if batch != POISON}
    assert set(rows_of(outcome)) == good
    assert [(bad.first_row, bad.rows) for bad in outcome.bad] == [
        (2 * n, 2) for n, batch in enumerate(batches) if batch == POISON
    ]


def test_batch_without_batch_axis_runs_requests_alone() -> None:
    requests = [[1.0, 2.0], [3.0, POISON], [5.0, 6.0]]
    good, bad, other = run_unit(*unit("whole", *requests))
    assert [part.outputs[0].to_array().tolist() for part in good.good] == [[1.0, 3.0]]
    assert (bad.good, [b.message for b in bad.bad]) == ([], ["poison"])
    assert other.good[0].outputs[0].to_array().tolist() == [5.0, 11.0]


def test_batch_gives_the_requested_outputs_in_order() -> None:
    records, spec, session = unit("rows", [1.0], outputs=("label", "y"))
    [outcome] = run_unit(records, spec, session)
    assert [tensor.name for tensor in outcome.good[0].outputs] == ["label", "y"]


@pytest.mark.parametrize(
    "output", [lambda x: x.sum(), lambda x: x[:0], lambda x: np.zeros(7), lambda x: np.concatenate([x, x])]
)
def test_batch_output_without_rows_fails_with_a_remedy(output: Any) -> None:
    records, spec, _ = unit("rows", [1.0, 2.0], [3.0], outputs=("y",))
    session = FakeSession(lambda inputs: {"y": np.asarray(output(inputs["x"]))})
    for outcome in run_unit(records, spec, session):
        assert not outcome.good
        assert all("enabled = false" in bad.message for bad in outcome.bad)


@pytest.mark.parametrize("lead", range(1, 9))
def test_batch_unaligned_inputs_are_aligned(lead: int) -> None:
    seen: list[bool] = []

    def look(inputs: Mapping[str, Array]) -> dict[str, Array]:
        seen.extend(bool(array.flags.aligned) for array in inputs.values())
        return {"y": 2 * inputs["x"] + 1}

    specs = (TensorSpec("n", "INT8", (None, lead)), TensorSpec("x", "FP64", (None, 2)))
    served = catalog()
    spec = ModelSpec("odd", "1", "", "", specs, (TensorSpec("y", "FP64", (None, 2)),))
    served.models["odd"] = {"1": spec}
    x = np.array([[1.0, 2.0]])
    inputs = (Tensor.from_array("n", np.zeros((1, lead), np.int8)), Tensor.from_array("x", x))
    message = codec.encode_request(InferRequest("odd", inputs, "a" * lead))
    [outcome] = run_unit([admitted(message, served)], spec, FakeSession(look))
    assert seen == [True, True]
    np.testing.assert_array_equal(outcome.good[0].outputs[0].to_array(), 2 * x + 1)


def test_batch_aligned_input_of_one_request_is_not_copied() -> None:
    shared: dict[bool, bool] = {}

    def look(inputs: Mapping[str, Array]) -> dict[str, Array]:
        array = inputs["x"]
        raw = np.frombuffer(requests[0].tensors[0], np.uint8)
        shared[raw.ctypes.data % array.itemsize == 0] = np.shares_memory(array, raw)
        return run_rows(inputs)

    for size in range(8):
        requests, spec, _ = unit("pairs", [1.0, 2.0], request_id="i" * size)
        run_unit(requests, spec, FakeSession(look))
        assert tensors_of("pairs", [1.0, 2.0])[0].data == requests[0].tensors[0]
    assert shared == {True: True, False: False}


@pytest.mark.parametrize(
    ("model", "requests", "is_whole"),
    [
        ("rows", [[1.0], [2.0, 3.0]], True),
        ("rows", [[1.0], [POISON]], False),
        ("pairs", [[1.0, 2.0], [3.0, 4.0]], True),
        ("whole", [[1.0]], False),
    ],
)
def test_batch_whole_is_set_if_all_rows_share_tensors(model: str, requests: list[list[float]], is_whole: bool) -> None:
    found, spec, session = unit(model, *requests)
    batch = run_batch(found, decode_signature(found[0].signature), spec, session, now_ms, Defects(Meter()))
    assert (batch.whole is not None) == is_whole


@pytest.mark.parametrize(
    ("model", "requests", "detail"),
    [("rows", [[1.0], [2.0, POISON]], "rows 2 to 2 of a batch"), ("whole", [[POISON]], "rows 0 to 0 of a batch")],
)
def test_batch_row_that_fails_is_noted_as_a_defect(model: str, requests: list[list[float]], detail: str) -> None:
    found, spec, session = unit(model, *requests)
    defects = Defects(Meter())
    run_batch(found, decode_signature(found[0].signature), spec, session, now_ms, defects)
    [defect] = defects.drain()
    assert (defect.phase, str(defect.error), defect.detail) == ("session", "poison", detail)


def test_batch_with_a_row_that_is_stopped_runs_rows_alone() -> None:
    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if POISON in inputs["x"]:
            raise RunTooLong("stopped")
        return run_rows(inputs)

    requests, spec, _ = unit("rows", [1.0, POISON, 2.0], [3.0] * 5)
    session = FakeSession(run)
    first, second = run_unit(requests, spec, session)
    assert [(bad.first_row, bad.rows, bad.code) for bad in first.bad] == [(1, 1, "run_too_long")]
    assert sorted(rows_of(first)) == [0, 2]
    assert sorted(rows_of(second)) == [0, 1, 2, 3, 4]
    # Halves that hold the row would take the time limit each.
    assert session.batches == [8, *[1] * 8]
