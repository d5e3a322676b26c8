"""A BATCH holds everything that the answers of its requests need."""

from typing import Any

import pytest

from anabranch.operators.core.admission import Admission
from anabranch.operators.core.defects import Defects
from anabranch.operators.core.execution.batch_transfer import decode_batch, expect_ms, pack, unpack
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.requests import Request
from anabranch.operators.core.scheduling.batch_cost_model import BatchCostModel, Measurement
from anabranch.schemas.messages import Encoding
from anabranch.schemas.records import BatchRecord, Source
from tests.core.models import MAX_MESSAGE_BYTES, NOW_MS, catalog, request

SERVED = catalog()


def admitted(request_id: str, values: list[float], model: str = "rows", **options: Any) -> Request:
    message = request(model, values, request_id=request_id, **options)
    found = Admission(SERVED, MAX_MESSAGE_BYTES, 5, Defects(Meter())).admit(
        message, Source(2, 7, int(NOW_MS) - 5), NOW_MS
    )
    assert isinstance(found, Request)
    found.arrived_ms = NOW_MS
    return found


def travelled(*requests: Request) -> list[Request]:
    return unpack(BatchRecord.decode(pack(requests).encode()))


@pytest.mark.parametrize("model", ["rows", "pairs", "whole"])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_batch_transfer_round_trip_gives_equal_requests(model: str, encoding: Encoding) -> None:
    options = {"priority": 2, "timeout": 60_000_000, "partial": True, "explain": True}
    sent = [admitted("ü", [1.0, 2.0], model, encoding=encoding, parameters=options)]
    if model != "whole":
        sent += [admitted("b", [3.0, 4.0, 5.0, 6.0], model), admitted("c", [7.0, 8.0], model, encoding=encoding)]
    sent[0].breakdown.admitted_ms = NOW_MS + 1  # type: ignore[union-attr]
    for before, after in zip(sent, travelled(*sent), strict=True):
        after.size_bytes = before.size_bytes  # memory of the copy differs
        assert after == before


def test_batch_transfer_joins_the_rows_of_all_entries() -> None:
    batch = pack([admitted("a", [1.0]), admitted("b", [2.0, 3.0])])
    assert [entry.rows for entry in batch.entries] == [1, 2]
    assert batch.tensors == pack([admitted("c", [1.0, 2.0, 3.0])]).tensors


def test_batch_transfer_without_timestamp_starts_at_the_read() -> None:
    unstamped = admitted("a", [1.0], parameters={"explain": True})
    unstamped.source = Source(0, 0, -1)
    [after] = travelled(unstamped)
    assert after.breakdown is not None
    assert after.breakdown.sent_ms == NOW_MS


def test_batch_transfer_expects_the_time_of_all_rows() -> None:
    encoded = pack([admitted("a", [1.0]), admitted("b", [2.0, 3.0])]).encode()
    costs = {"rows": BatchCostModel([Measurement(1, 10.0), Measurement(3, 30.0)])}
    assert expect_ms(decode_batch(encoded), lambda signature: costs[signature.model_name]) == 30.0
    # Its run reports a damaged batch, and an unknown model.
    assert decode_batch(encoded[:20]) is None
    assert expect_ms(None, lambda signature: costs[signature.model_name]) == 0.0
    assert expect_ms(decode_batch(encoded), lambda signature: costs[""]) == 0.0
    costs["rows"] = BatchCostModel()
    for rows in (1, 4, 1):
        costs["rows"].observe(rows, 2.0 * rows, row_elements=3)
    assert expect_ms(decode_batch(encoded), lambda signature: costs[signature.model_name]) == pytest.approx(6.0)
