"""Every operator of every topology has a stable identity, by which Flink finds its state again."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from anabranch.flink_job import java
from anabranch.flink_job.config import Config
from anabranch.flink_job.flows.flow_tables import FlowTable
from tests.flink.conftest import MODES
from tests.flink.models import write_cut_model, write_ensembles_with_stages, write_repository
from tests.flink.stream_graph import stream_nodes

#: Identities of the first release. A removed or changed line loses the state of all running jobs.
GOLDEN = {
    "requests",
    "serve",
    "infer",
    "aggregate",
    "unpack-responses",
    "unpack-exchanged-responses",
    "responses",
    "exchanged-responses",
    "merged-responses",
    "errors",
}
GOLDEN_STAGES = {"stage/steps/1/0", "stage/steps/1/1", "stage/steps/1/2"}
#: Flink derives a committer's identity from its sink's.
COMMITTER = "Sink Committer: "


def operators(config: Config) -> dict[int, tuple[str, str | None]]:
    """Returns name and identity of all operators of a job that is not started."""
    return {node.getId(): (node.getOperatorName(), node.getTransformationUID()) for node in stream_nodes(config)}


def configured(repository: Path, mode: str, delivery: str = "at-least-once") -> Config:
    return Config().replace(job={"execution_mode": mode, "delivery": delivery}, models={"repository": str(repository)})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_operator_ids_of_all_topologies_are_the_golden_ones(tmp_path: Path, mode: str, delivery: str) -> None:
    write_repository(tmp_path)
    whole = operators(configured(tmp_path, mode, delivery))
    write_cut_model(tmp_path)
    write_ensembles_with_stages(tmp_path)
    staged = operators(configured(tmp_path, mode, delivery))

    for found, expected in ((whole, GOLDEN), (staged, GOLDEN | GOLDEN_STAGES)):
        ids = [uid for _, uid in found.values()]
        assert None not in ids, found
        assert len(set(ids)) == len(ids)
        assert {uid for uid in ids if uid and not uid.startswith(COMMITTER)} == expected
        committers = {uid.removeprefix(COMMITTER) for uid in ids if uid and uid.startswith(COMMITTER)}
        assert committers <= {"responses", "exchanged-responses", "merged-responses", "errors"}


def test_flink_refuses_operator_without_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(tmp_path)
    monkeypatch.setattr("pyflink.datastream.DataStream.uid", lambda stream, _: stream)
    with pytest.raises(Exception, match="Auto generated UIDs have been disabled"):
        operators(configured(tmp_path, "thread"))


def test_writers_of_flows_name_their_topics_to_flink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flink ends a killed task's transactions in these alone; committed readers would wait for others' time-outs."""
    write_repository(tmp_path)
    writers: list[Any] = []
    record_writer = java.record_writer

    def recorded(*arguments: Any, **options: Any) -> Any:
        writers.append(record_writer(*arguments, **options))
        return writers[-1]

    monkeypatch.setattr(java, "record_writer", recorded)
    flow = FlowTable(source="payments", to="scored+", model="double", inputs={"x": "n"}, outputs={"y": "y"})
    config = configured(tmp_path, "thread", "exactly-once").replace(kafka={"reply_topics": ("replies-*",)})
    operators(msgspec.structs.replace(config, flow=(flow,)))
    named = [writer.getKafkaDatasetFacet().get().getTopicIdentifier() for writer in writers]
    assert len(named) == 4
    patterns = [each.getTopicPattern() for each in named if each.getTopicPattern() is not None]
    assert len(patterns) == 3
    for pattern in patterns:
        assert [pattern.matcher(name).matches() for name in ("scored+", "replies-7", config.kafka.responses_topic)] == [
            True,
            True,
            True,
        ]
        assert not pattern.matcher("scoredd").matches()
