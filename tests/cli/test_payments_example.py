"""The tutorial with payments, as far as it needs no cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anabranch.cli import app
from examples.payments import make_model
from examples.payments.events import payments
from tests.docs.pages import ROOT, blocks

PAGE = blocks(ROOT / "docs/tutorial-payments.md")
CONFIG = ROOT / "examples/payments/anabranch.toml"


def test_page_configuration_is_that_of_the_example() -> None:
    [shown] = [block.text for block in PAGE if block.language == "toml"]
    assert shown == CONFIG.read_text()


def test_example_model_is_the_one_of_its_script() -> None:
    assert make_model.build_model().SerializeToString(deterministic=True) == make_model.MODEL.read_bytes()


def test_page_event_is_the_first_of_the_script() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "examples.payments.events", "--count", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    [shown] = [block.text for block in PAGE if block.language == "json"]
    assert made.stdout == shown


def test_page_commands_give_the_numbers_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    events, scored = tmp_path / "payments.jsonl", tmp_path / "scored.jsonl"
    events.write_text("".join(json.dumps(payment) + "\n" for payment in payments(1000)))
    command = ["try", str(CONFIG), "--input", str(events), "--output", str(scored)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("missing_field") == 10
    found = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [payment["id"] for payment in found] == [each["id"] for each in payments(1000) if "amount" in each]
    assert {payment["fraud"]["label"] for payment in found} == {"ok", "fraud"}
    assert all((payment["fraud"]["score"] > 0.5) == (payment["fraud"]["label"] == "fraud") for payment in found)
    sample = tmp_path / "payment.json"
    sample.write_text(events.read_text().splitlines()[0])
    result = CliRunner().invoke(app, ["flow", "check", str(CONFIG), "--sample", str(sample)])
    assert json.loads(result.stdout)["fraud"]["score"] == found[0]["fraud"]["score"]
