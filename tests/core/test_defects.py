import pickle

from anabranch.operators.core.defects import Defect, Defects
from anabranch.operators.core.metrics import Meter
from anabranch.operators.core.response_writer import ResponseWriter
from anabranch.schemas.limits import MAX_PENDING_DEFECTS
from tests.core.models import MAX_MESSAGE_BYTES, now_ms


def test_defects_noted_are_drained_once_in_order() -> None:
    defects, first, second = Defects(Meter()), KeyError("x"), ValueError("y")
    defects.note("merge", first, "request 'a'")
    defects.note("batch", second)
    assert defects.drain() == [Defect("merge", first, "request 'a'"), Defect("batch", second, "")]
    assert defects.drain() == []


def test_defects_beyond_the_limit_are_counted() -> None:
    meter = Meter()
    defects = Defects(meter)
    for _ in range(MAX_PENDING_DEFECTS + 3):
        defects.note("session", ValueError())
    assert len(defects.drain()) == MAX_PENDING_DEFECTS
    assert meter.has_more
    assert meter.drain() == {("phase", "session", "defects"): MAX_PENDING_DEFECTS + 3}
    assert not meter.has_more


def test_defects_of_a_copied_writer_use_its_own_meter() -> None:
    writer: ResponseWriter = ResponseWriter("requests", MAX_MESSAGE_BYTES, now_ms)
    copy = pickle.loads(pickle.dumps(writer))
    copy.defects.note("encode", ValueError())
    assert copy.meter.drain() == {("phase", "encode", "defects"): 1}
    assert writer.meter.drain() == {}
    assert writer.defects.drain() == []
