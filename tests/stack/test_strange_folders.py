"""Data folders with spaces, commas and letters beyond ASCII hold everything, in any locale."""

from pathlib import Path

import pytest

from anabranch.stack.flink.cluster import FlinkCluster
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("name", ["dät ö", "a,b", "日本 #1=x\\y"])
def test_broker_in_strange_folder_keeps_its_topics_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    folder = tmp_path / name / "kafka"
    with KafkaBroker(folder) as broker:
        broker.create_topics(Topic("kept"))
    assert (folder / "log" / "kept-0").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_flink_cluster_in_strange_folder_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    with FlinkCluster(tmp_path / "dät, ö", task_managers=1) as cluster:
        assert cluster.url.startswith("http://")
