from pathlib import Path

import psutil
import pytest

from anabranch.stack import local_stack as stack
from anabranch.stack import stack_record
from anabranch.stack.errors import NotEnoughMemory, NotRunning, StackError
from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.flink.rest import FlinkJob, FlinkRest
from anabranch.stack.processes import ProcessRecord
from tests.arenas import processes_of


def test_status_without_stack_is_not_running(tmp_path: Path) -> None:
    assert stack.status(tmp_path) == stack.StackStatus(running=False, data_dir=str(tmp_path))
    with pytest.raises(NotRunning, match="start one with `anabranch up`"):
        stack.require(tmp_path)
    with pytest.raises(NotRunning):
        stack.down(tmp_path)
    assert not list(tmp_path.iterdir())


def test_status_dead_processes_are_gone(tmp_path: Path) -> None:
    dead = ProcessRecord(name="broker", pid=2**22 + 1, started_at=1.0, marker="none")
    record = stack_record.StackRecord(bootstrap_servers="127.0.0.1:9", flink_url="http://127.0.0.1:9", processes=[dead])
    stack_record.write(tmp_path, record)
    found = stack.status(tmp_path)
    assert not found.running
    assert found.broker_pid is None
    assert found.gone == ["broker"]
    stack.down(tmp_path)
    assert stack.status(tmp_path).flink_url is None


def test_status_job_that_ends_meanwhile_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise StackError("404")

    monkeypatch.setattr(ProcessRecord, "find", lambda _: psutil.Process())
    monkeypatch.setattr(FlinkRest, "jobs", lambda _: [])
    monkeypatch.setattr(stack, "workers", gone)
    records = [ProcessRecord(name=name, pid=1, started_at=1.0, marker="none") for name in ("broker", "job-manager")]
    url = "http://127.0.0.1:9"
    stack_record.write(
        tmp_path, stack_record.StackRecord(bootstrap_servers="127.0.0.1:9", flink_url=url, processes=records)
    )
    found = stack.status(tmp_path)
    assert found.running
    assert found.workers == []
    monkeypatch.setattr(FlinkRest, "jobs", gone)
    assert not stack.status(tmp_path).running


def test_up_during_a_restart_waits_for_broker_and_flink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessRecord, "find", lambda _: psutil.Process())
    silent = iter([StackError("503")])
    answering = iter([False, True])

    def jobs(_: FlinkRest) -> list[FlinkJob]:
        for error in silent:
            raise error
        return []

    monkeypatch.setattr(stack, "answers", lambda _: next(answering))
    monkeypatch.setattr(FlinkRest, "jobs", jobs)
    names = ("broker", "job-manager", "task-manager-1", "supervisor")
    records = [ProcessRecord(name=name, pid=1, started_at=1.0, marker="none") for name in names]
    url = "http://127.0.0.1:9"
    stack_record.write(
        tmp_path,
        stack_record.StackRecord(bootstrap_servers="127.0.0.1:9", flink_url=url, processes=records, ready=True),
    )
    steps: list[str] = []
    found, is_changed = stack.up(tmp_path, task_managers=1, progress=steps.append)
    assert (found.running, is_changed) == (True, False)
    assert steps == ["Waiting for processes that start again"] * 2
    assert next(answering, None) is None


def test_status_broken_record_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(StackError, match=r"stack.json cannot be read .*remove it"):
        stack.status(tmp_path)


def test_up_too_little_memory_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    little = psutil.virtual_memory()._replace(available=600 * 2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(NotEnoughMemory, match=r"600 MB are available: .*fewer --task-managers"):
        stack.up(tmp_path, kafka_port=0, flink_port=0)
    assert processes_of(tmp_path) == []


@pytest.mark.recovery
@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), StackError("not ready")])
def test_up_interrupted_start_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    seen: list[int] = []

    def cut_off(cluster: FlinkCluster) -> None:
        seen.extend(processes_of(tmp_path))
        raise interruption

    monkeypatch.setattr(FlinkCluster, "await_ready", cut_off)
    monkeypatch.setattr("anabranch.stack.kafka.broker.KafkaBroker.await_ready", lambda _: None)
    with pytest.raises(type(interruption)):
        stack.up(tmp_path, task_managers=1, kafka_port=0, flink_port=0)
    assert len(seen) >= 3
    assert processes_of(tmp_path) == []
    assert not stack.status(tmp_path).running


def test_data_dir_choice_precedes_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANABRANCH_DATA_DIR", raising=False)
    assert stack.data_dir() == tmp_path / ".anabranch"
    monkeypatch.setenv("ANABRANCH_DATA_DIR", str(tmp_path / "there"))
    assert stack.data_dir() == tmp_path / "there"
    assert stack.data_dir(tmp_path / "here") == tmp_path / "here"
