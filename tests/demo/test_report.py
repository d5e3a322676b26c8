import io
import json
from typing import Any

import pytest
from rich.console import Console

from anabranch.demo.bad_requests import BadRequest
from anabranch.demo.error_check import ErrorOutcome
from anabranch.demo.report import Figures, print_report

RIGHT: dict[str, Any] = {
    "requests": 121,
    "answered": 121,
    "mismatches": 0,
    "errors_sent": 2,
    "errors_answered": 2,
    "shards": 64,
    "tasks": 2,
    "throughput_rps": 250.0,
    "p50_ms": 9.0,
    "p95_ms": 12.0,
    "p99_ms": 20.0,
    "paced_requests": 20,
    "paced_rps": 100.0,
    "http_requests": 30,
    "http_rps": 150.0,
    "in_flight": 64,
    "saturated_p50_ms": 240.0,
    "large_rows": 1_024,
    "large_latency_ms": 3_000.0,
    "files": 103,
    "files_by_rule": 3,
    "files_unread": 0,
    "magika_compared": 100,
    "magika_agreements": 100,
    "types": {f"type {number}": 20 - number for number in range(20)},
    "error_codes": {"noise": "unreadable", "unknown model": "unknown_model"},
    "seconds": {"start": 12.3},
    "problems": [],
}
OUTCOMES = [
    ErrorOutcome(BadRequest("noise", "", b"?", "unreadable"), "unreadable", "no message", ""),
    ErrorOutcome(BadRequest("unknown model", "id-1", b"", "unknown_model"), "unknown_model", "no such", ""),
]


def test_figures_json_has_all_fields() -> None:
    written = json.loads(Figures(**RIGHT).to_json())
    assert written == RIGHT
    assert written.keys() >= {
        *("requests", "answered", "mismatches", "errors_sent", "errors_answered", "shards", "tasks"),
        *("throughput_rps", "p50_ms", "p95_ms", "p99_ms", "magika_agreements"),
    }


@pytest.mark.parametrize(
    "wrong", [{"answered": 120}, {"mismatches": 1}, {"errors_answered": 1}, {"problems": ["file x: no answer"]}]
)
def test_figures_one_wrong_answer_is_a_failure(wrong: dict[str, Any]) -> None:
    assert Figures(**RIGHT).succeeded
    assert not Figures(**RIGHT | wrong).succeeded


def printed(figures: Figures, outcomes: list[ErrorOutcome], *, show_bad_requests: bool = False) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=160), figures, outcomes, show_bad_requests=show_bad_requests)
    return out.getvalue()


def test_report_success_shows_figures() -> None:
    text = printed(Figures(**RIGHT), OUTCOMES)
    for expected in (
        "type 0",
        "5 more types",
        "1,144 of 1,144 rows, within 1e-5",
        "100 of 100 files",
        "1,024 rows in 64 shards over 2 tasks",
        "p50 9.0, p95 12.0, p99 20.0 ms",
        "Every answer is right.",
    ):
        assert expected in text
    assert "type 15" not in text
    assert "unknown_model" not in text


def test_report_bad_requests_follow_result_on_demand() -> None:
    text = printed(Figures(**RIGHT), OUTCOMES, show_bad_requests=True)
    assert text.index("Every answer is right.") < text.index("unknown_model")


def test_report_problems_are_shown() -> None:
    problems = [f"file [{number}]: no answer" for number in range(12)]
    outcomes = [ErrorOutcome(OUTCOMES[0].request, "", "", "no dead letter")]
    text = printed(Figures(**RIGHT | {"problems": problems, "mismatches": 3}), outcomes)
    for expected in ("file [9]: no answer", "and 2 more", "no dead letter", "1,141 of 1,144", "Not every answer"):
        assert expected in text
