"""Events of flows against Confluent's own serializers: they write the golden ones, and read those of flows."""

import json
from collections.abc import Callable
from pathlib import Path

from anabranch.operators.core.flows.flow import Flow
from anabranch.operators.registry.http_registry import HttpRegistry, RegistryAccess
from anabranch.schemas.wire.carried import Carried, decode_carried
from tests.core import test_avro_format as avro
from tests.core import test_protobuf_format as protobuf
from tests.schema_registry import RegistryServer


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_confluent_events_are_the_golden_ones(run_there: Callable[..., None], tmp_path: Path) -> None:
    run_there("confluent_side.py", "golden", str(tmp_path))
    assert lines(tmp_path / "avro.jsonl") == avro.GOLDEN
    assert lines(tmp_path / "protobuf.jsonl") == protobuf.GOLDEN


def test_confluent_guids_in_headers_come_and_go(run_there: Callable[..., None], tmp_path: Path) -> None:
    with RegistryServer(has_guids=True) as server:
        run_there("confluent_side.py", "by_guid", str(tmp_path), server.url)
        with (tmp_path / "scored.jsonl").open("w") as file:
            for line, side in zip((tmp_path / "events.jsonl").read_text().splitlines(), (avro, protobuf), strict=True):
                event = json.loads(line)
                carried = Carried("t", -3, None, ((event["header"], bytes.fromhex(event["head"])),)).encode()
                flow = Flow(side.spec("amount"), side.model(), registry=HttpRegistry(RegistryAccess(url=server.url)))
                whole = flow.with_head(bytes.fromhex(event["event"]), carried)
                value, carried = flow.without_head(flow.write(whole, flow.format(side.SCORES)[0]), carried)
                [(name, head)] = decode_carried(carried).headers
                assert head is not None
                assert head.startswith(b"\1")
                file.write(json.dumps({"event": value.hex(), "header": name, "head": head.hex()}) + "\n")
        run_there("confluent_side.py", "check_by_guid", str(tmp_path), server.url)


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
