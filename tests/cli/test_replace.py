"""`anabranch run` beside a running job: refused, or with `--replace` started from its savepoint."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner, Result

from anabranch import cli
from anabranch.commands import run as run_command
from anabranch.flink_job.job_identity import IDENTITY_PARAMETER, JobIdentity, encode_identity
from anabranch.jobs.control import JobControl
from anabranch.jobs.keeper import JobKeeper
from anabranch.stack.flink.rest import FlinkJob, FlinkRest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "models"
SAVEPOINT = "file:///c/other/stopped/savepoint-1"


class FakeCluster:
    """A cluster with one job; notes what is done to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, savepoint: str = "", **kafka: str) -> None:
        self.did: list[tuple[str, Any]] = []
        identity = encode_identity(JobIdentity(name=name, brokers="127.0.0.1:9092", **kafka))
        monkeypatch.setattr(FlinkRest, "jobs", lambda _: [FlinkJob("j", name, "RUNNING", 1)])
        monkeypatch.setattr(FlinkRest, "job_parameters", lambda *_: {IDENTITY_PARAMETER: identity})
        monkeypatch.setattr(FlinkRest, "get", lambda *_: {"slots-total": 2, "slots-available": 0})
        monkeypatch.setattr(JobControl, "stop", self._note("stop", savepoint))
        monkeypatch.setattr(JobKeeper, "store", self._note("store"))
        monkeypatch.setattr(JobKeeper, "await_slots", Mock())
        monkeypatch.setattr(JobKeeper, "start", lambda _, **options: self.did.append(("start", options)))
        monkeypatch.setattr(JobKeeper, "await_serving", Mock())
        monkeypatch.setattr(run_command, "with_topics", lambda config, *_: config)
        monkeypatch.setattr(run_command, "print_job", Mock())
        monkeypatch.setattr(run_command, "_refuse_elsewhere", Mock())

    def _note(self, word: str, result: str = "") -> Any:
        def note(_: object, *given: Any) -> str:
            self.did.append((word, given[0].name if given else None))
            return result

        return note

    @property
    def order(self) -> list[str]:
        return [word for word, _ in self.did]


def run(folder: Path, *options: str) -> Result:
    shutil.copytree(QUICKSTART, folder / "models")
    (folder / "job.toml").write_text(f'[job]\nname = "mine"\nparallelism = 2\ncheckpoint_dir = "file://{folder}/c"\n')
    arguments = ["run", "--flink-url", "http://127.0.0.1:1", "--config", str(folder / "job.toml"), "--detach"]
    arguments += ["--model-repository", str(folder / "models"), "--data-dir", str(folder / "stack")]
    return CliRunner().invoke(cli.app, [*arguments, *options])


def test_run_beside_a_job_of_its_topics_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(monkeypatch, "other", requests_topic="inference-requests", group_id="anabranch")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("job_conflict: the cluster at http://127.0.0.1:1 runs the job 'other' (j)")
    assert "anabranch run --replace" in result.stderr
    assert cluster.did == []


@pytest.mark.parametrize(
    ("name", "savepoint", "options", "path"),
    [
        ("other", SAVEPOINT, [], SAVEPOINT),
        ("mine", "file:{}/c/mine/stopped/savepoint-1", [], ""),  # The newest state of its folder.
        ("mine", SAVEPOINT, [], SAVEPOINT),
        ("other", SAVEPOINT, ["--from", "file:///chosen"], "file:///chosen"),
        ("mine", SAVEPOINT, ["--fresh"], ""),
    ],
)
def test_run_replace_stops_the_other_and_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, savepoint: str, options: list[str], path: str
) -> None:
    found = savepoint.format(tmp_path)
    cluster = FakeCluster(monkeypatch, name, found, requests_topic="inference-requests", group_id="anabranch")
    result = run(tmp_path, "--replace", *options)
    assert result.exit_code == 0, result.output
    # The models are copied before the other job stops.
    assert cluster.order == ["store", "stop", "start"]
    assert cluster.did[1:] == [("stop", name), ("start", {"fresh": "--fresh" in options, "path": path})]
