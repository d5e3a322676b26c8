import logging
import os

import pytest

from anabranch.operators.core.defects import Defects
from anabranch.operators.core.metrics import Meter
from anabranch.operators.runtime import defect_log
from anabranch.operators.runtime.defect_log import INTERVAL_S, DefectLog
from anabranch.operators.runtime.task_context import TaskContext


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(defect_log, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def defects() -> Defects:
    return Defects(Meter())


@pytest.fixture
def log(defects: Defects) -> DefectLog:
    return DefectLog(defects, "serve", TaskContext(3, 4, 1))


def buggy() -> Exception:
    try:
        os.environ["MISSING"]
    except KeyError as error:
        return error
    raise AssertionError


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_report_logs_place_detail_and_traceback(
    defects: Defects, log: DefectLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    defects.note("session", buggy(), "request 'a'")
    assert log.report()
    [record] = caplog.records
    assert (record.name, record.levelno) == ("anabranch.defects", logging.ERROR)
    first, *rest = record.getMessage().splitlines()
    assert first == "defect in phase session (serve, task 3, attempt 1): request 'a'"
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "KeyError: 'MISSING'"
    assert any("in buggy" in line for line in rest)
    assert record.exc_info is None, "the handlers of both modes would repeat the traceback"


def test_report_without_defects_logs_nothing(log: DefectLog, caplog: pytest.LogCaptureFixture) -> None:
    assert not log.report()
    assert caplog.records == []


def test_report_of_many_defects_of_a_kind_logs_one(
    defects: Defects, log: DefectLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        defects.note("session", buggy())
        log.report()
    assert len(caplog.records) == 1
    clock.now_s = INTERVAL_S - 0.1
    defects.note("session", buggy())
    log.report()
    assert len(caplog.records) == 1
    clock.now_s = INTERVAL_S
    defects.note("session", buggy())
    log.report()
    assert "; 5 more of this kind since the last one logged\n" in messages(caplog)[1]
    clock.now_s = 2 * INTERVAL_S
    defects.note("session", buggy())
    log.report()
    assert "more of this kind" not in messages(caplog)[2]


def test_report_limits_each_phase_and_type_alone(
    defects: Defects, log: DefectLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for phase, error in (("admit", buggy()), ("session", buggy()), ("session", ValueError("b")), ("admit", buggy())):
        defects.note(phase, error)
    log.report()
    assert [message.split()[3] for message in messages(caplog)] == ["admit", "session", "session"]
    assert messages(caplog)[2].endswith("ValueError: b")


def test_report_keeps_no_defect(defects: Defects, log: DefectLog, clock: Clock) -> None:
    defects.note("session", buggy())
    log.report()
    assert defects.drain() == []
