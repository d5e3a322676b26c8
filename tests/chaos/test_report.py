"""The report shows what the results say, and the committed one is that of the committed results."""

import pytest

from tests.chaos import events, report
from tests.chaos.chaos_slice import FaultResult, SliceResult, read_suite
from tests.chaos.checker import Verdict
from tests.chaos.faults import FAULTS
from tests.chaos.load import Ledger


def made_result(**changes: object) -> SliceResult:
    faults = [
        FaultResult(kind="kill the broker", at_s=3.0, answers_again_s=8.0, caught_up_s=10.0),
        FaultResult(kind="kill a TaskManager", at_s=30.0, answers_again_s=2.0, caught_up_s=4.0),
        FaultResult(kind="kill a TaskManager", at_s=60.0, missed="nothing was killed"),
    ]
    settings = {
        "name": "thread-exactly-once-network",
        "plan": read_suite()["thread-exactly-once-network"],
        "date": "2026-11-29",
        "commit": "abcdef0",
        "cores": 2,
        "load_average": 7.5,
        "duration_s": 100.0,
        "faults": faults,
        "verdict": Verdict(requests=20_000, answers=19_900, ordered=2_000),
        "runs": 1,
    }
    return SliceResult(**settings | changes)  # type: ignore[arg-type]


def test_report_shows_counts_and_recovery_by_kind() -> None:
    text = report.page([made_result()], report.Endurance())
    assert "20,000 requests under 2 faults of 2 kinds: lost 0, wrong 0, doubled 0, disordered 0." in text
    assert "| thread-exactly-once-network | 20,000 | 2 | 0 | 0 | 0 | 0 of 2,000 | - | 7.5 | abcdef0 |" in text
    assert "| kill a TaskManager | 1 | 2.0 | 2.0 | 4.0 | 4.0 |" in text
    assert "| all | 2 | 5.0 | 7.7 | 7.0 | 9.7 |" in text
    assert text.index("| kill a TaskManager") < text.index("| kill the broker")


def test_report_says_that_the_broker_refused_requests() -> None:
    text = report.page([made_result(refused=1_099), made_result()], report.Endurance())
    assert "The broker took none of 1,099 more, from a clock that was too far ahead: their sender knew." in text


def test_ledger_does_not_wait_for_a_refused_request() -> None:
    ledger = Ledger()
    ledger.sent("0")
    ledger.sent("1")
    ledger.answered("0")
    assert ledger.caught_up_after(ledger.last_change_s + 1) is None
    ledger.refused("1")
    assert ledger.caught_up_after(ledger.last_change_s + 1) is not None
    assert list(ledger.sent_s) == ["0"]


def test_report_violations_and_missed_faults_are_shown() -> None:
    verdict = Verdict(requests=10, lost=1, examples=["lost: 0 of 1 answers to 5"])
    text = report.page([made_result(verdict=verdict, note="no recovery")], report.Endurance())
    assert "lost 1, wrong 0" in text
    assert "- thread-exactly-once-network: lost: 0 of 1 answers to 5" in text
    assert "- thread-exactly-once-network: no recovery" in text
    assert "- thread-exactly-once-network: kill a TaskManager: nothing was killed" in text


def test_report_controls_are_kept_out_of_the_result() -> None:
    control = made_result(plant="drop", verdict=Verdict(requests=3_000, lost=6))
    text = report.page([made_result(), control], report.Endurance())
    assert "lost 0, wrong 0" in text
    assert "- a reader that drops every 500th answer: lost 6, doubled 0 of 3,000" in text


def test_report_shows_events_and_their_violations() -> None:
    verdict = events.Verdict(
        events=49_000,
        lost=1,
        doubled=0,
        wrong=2,
        disordered=0,
        malformed=1_000,
        lost_letters=0,
        doubled_letters=3,
        wrong_letters=0,
        examples=["lost: event 7"],
    )
    result = events.EventsResult(
        format="avro",
        mode="thread",
        date="2026-11-30",
        commit="abcdef0",
        rate_per_s=500.0,
        faults=["a TaskManager was killed", "`anabranch rescale 3`, from 2 tasks"],
        seconds=120.0,
        ways=24,
        restored=2,
        verdict=verdict,
    )
    text = report.page([made_result()], report.Endurance(), [result])
    assert "| avro, thread | 49,000 | 1 | 0 | 2 | 0 | 1,000, 24 ways | 0 | 3 | 0 | abcdef0 |" in text
    assert "a TaskManager was killed; `anabranch rescale 3`, from 2 tasks." in text
    assert "- avro, thread: lost: event 7" in text


def test_suite_has_all_kinds_in_both_modes_and_deliveries() -> None:
    plans = {name: plan for name, plan in read_suite().items() if not name.startswith("gate-")}
    assert {kind for plan in plans.values() for kind in plan.faults} == FAULTS.keys()
    assert sum(len(plan.faults) for plan in plans.values()) >= 40
    assert len({(plan.mode, plan.delivery) for plan in plans.values()}) == 4
    assert len({plan.seed for plan in plans.values()}) == len(plans)


@pytest.mark.skipif(not report.read_results(), reason="no result is committed")
def test_committed_page_is_that_of_the_committed_results() -> None:
    expected = report.page(report.read_results(), report.read_endurance(), report.read_events())
    assert report.PAGE.read_text() == expected, "run: python -m tests.chaos.report"
