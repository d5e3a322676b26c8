"""Events of flows against Confluent's own serializers: they write the golden ones, and read those of flows."""

import json
from collections.abc import Callable
from pathlib import Path

from anabranch.operators.core.flows.flow import Flow
from tests.core import test_avro_format as avro
from tests.core import test_protobuf_format as protobuf


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_confluent_events_are_the_golden_ones(run_there: Callable[..., None], tmp_path: Path) -> None:
    run_there("confluent_side.py", "golden", str(tmp_path))
    assert lines(tmp_path / "avro.jsonl") == avro.GOLDEN
    assert lines(tmp_path / "protobuf.jsonl") == protobuf.GOLDEN


def test_confluent_deserializers_read_scored_events(run_there: Callable[..., None], tmp_path: Path) -> None:
    for name, side in (("avro", avro), ("protobuf", protobuf)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for case in side.GOLDEN:
                registry = side.registry_of(case)
                flow = Flow(side.spec("amount"), side.model(), registry=registry)
                scored = flow.write(bytes.fromhex(case["event"]), flow.format(side.SCORES)[0])
                written = {"scored": scored.hex(), "scored_schema": registry.schemas[-1].text, "golden": case["scored"]}
                file.write(json.dumps(case | written) + "\n")
    run_there("confluent_side.py", "check", str(tmp_path))
