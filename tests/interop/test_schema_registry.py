"""Flows at a real schema registry, with Confluent's own serializers, while schemas change.

Confluent's serializers --> avro, avro-header, protobuf, protobuf-header --> [ flows ] --> Confluent's deserializers
                                  schemas in Apicurio, by number in the value or in a header
"""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from anabranch.flink_job import job
from anabranch.flink_job.config import Config
from anabranch.flink_job.flows.flow_tables import FlowTable
from anabranch.operators.core.flows.formats.protobuf_schema import ProtobufSchema
from anabranch.operators.core.flows.formats.registered_schemas import RegisteredSchema
from anabranch.operators.registry.http_registry import HttpRegistry, RegistryAccess
from anabranch.schemas.errors import SchemaRefused, UnknownSchema
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from tests.flink.conftest import FIRST_THREAD, model_repository
from tests.flink.service import PARTITIONS, Topics
from tests.interop.apicurio import ApicurioRegistry
from tests.schema_registry import RegistryServer

__all__ = ["model_repository"]

CONTENT = "application/vnd.schemaregistry.v1+json"
FIRST = {"type": "record", "name": "P", "fields": [{"name": "id", "type": "long"}]}
LAST = {"type": "record", "name": "P", "fields": [*FIRST["fields"], {"name": "x", "type": "string"}]}


def ask(url: str, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(url.rstrip("/") + path, data, {"Accept": CONTENT, "Content-Type": CONTENT}, method=method)
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        content = error.read()
        return error.code, json.loads(content) if content else {}


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApicurioRegistry]:
    """A registry that refuses schemas which do not read the events of the last one."""
    with ApicurioRegistry(tmp_path_factory.mktemp("apicurio")) as registry:
        ask(registry.url, "/config", {"compatibility": "BACKWARD"}, "PUT")
        yield registry


def test_fake_registry_answers_as_the_real_one(apicurio: ApicurioRegistry) -> None:
    first, proto = json.dumps(FIRST), 'syntax = "proto3"; message U { string id = 1; }'
    calls: list[tuple[str, Any]] = [
        ("/subjects/fake%2Fa/versions", {"schema": first}),
        ("/subjects/fake%2Fa/versions", {"schema": first, "schemaType": "AVRO", "references": []}),
        ("/subjects/fake%2Fa/versions/latest", None),
        ("/subjects/fake%2Fa/versions/1", None),
        ("/subjects/fake-p/versions", {"schema": proto, "schemaType": "PROTOBUF"}),
        ("/subjects/fake-p/versions/latest", None),
        ("/subjects/fake-none/versions/latest", None),
        ("/subjects/fake-bad/versions", {"schema": "{]"}),
        ("/schemas/ids/9999", None),
        ("/schemas/guids/00000000-0000-0000-0000-000000000001", None),
    ]
    with RegistryServer() as fake:
        for path, body in calls:
            (status, real), (faked, said) = (ask(url, path, body) for url in (apicurio.url, fake.url))
            about = ("schema", "schemaType", "references", "subject", "version", "error_code")
            assert (faked, said.keys()) == (status, real.keys()), path
            assert [said.get(each) for each in about] == [real.get(each) for each in about], path


def text_of(*fields: tuple[str, int, int]) -> str:
    file = FileDescriptorProto(name="event.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Pay")
    for name, number, kind in fields:
        message.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    return base64.b64encode(file.SerializeToString()).decode()


def test_client_at_the_real_registry(apicurio: ApicurioRegistry) -> None:
    client = HttpRegistry(RegistryAccess(url=apicurio.url, timeout_s=20))
    first = RegisteredSchema(json.dumps(FIRST, separators=(",", ":")))
    number = client.register("client-value", first).number
    assert client.schema(number) == client.latest("client-value") == first
    with pytest.raises(SchemaRefused, match=r"409 .*Incompatible artifact: client-value"):
        client.register("client-value", RegisteredSchema(json.dumps(LAST)))
    with pytest.raises(SchemaRefused, match="422 "):
        client.register("client-value", RegisteredSchema("{]"))
    with pytest.raises(UnknownSchema, match="404 Schema 9999 not found"):
        client.schema(9999)
    with pytest.raises(UnknownSchema, match="404 "):
        client.schema("00000000-0000-0000-0000-000000000001")
    with pytest.raises(UnknownSchema, match="is AVRO, expected PROTOBUF"):
        HttpRegistry(RegistryAccess(url=apicurio.url)).schema(number, "PROTOBUF")
    ask(apicurio.url, "/subjects/user/versions", {"schema": json.dumps(FIRST | {"name": "U"})})
    inner = {"name": "U", "subject": "user", "version": 1}
    outer = {"type": "record", "name": "Q", "fields": [{"name": "u", "type": "U"}]}
    _, made = ask(apicurio.url, "/subjects/q/versions", {"schema": json.dumps(outer), "references": [inner]})
    found = client.schema(made["id"])
    assert (found.references, [name for name, _ in found.dependencies]) == ((inner,), ["U"])


def test_client_reads_protobuf_as_text_and_descriptor(apicurio: ApicurioRegistry) -> None:
    client = HttpRegistry(RegistryAccess(url=apicurio.url, timeout_s=20))
    descriptor = RegisteredSchema(text_of(("id", 1, FieldDescriptorProto.TYPE_STRING)), kind="PROTOBUF")
    number = client.register("descriptor-value", descriptor).number
    assert client.schema(number, "PROTOBUF") == client.latest("descriptor-value", "PROTOBUF") == descriptor
    changed = text_of(("id", 1, FieldDescriptorProto.TYPE_INT64))
    with pytest.raises(SchemaRefused, match="Field type changed"):
        client.register("descriptor-value", RegisteredSchema(changed, kind="PROTOBUF"))
    user = 'syntax = "proto3"; package shop; message User { string name = 1; }'
    pay = 'syntax = "proto3"; package shop; import "shop/user.proto"; message Pay { User user = 1; int64 n = 200000; }'
    ask(apicurio.url, "/subjects/proto-user/versions", {"schema": user, "schemaType": "PROTOBUF"})
    reference = {"name": "shop/user.proto", "subject": "proto-user", "version": 1}
    body = {"schema": pay, "schemaType": "PROTOBUF", "references": [reference]}
    _, made = ask(apicurio.url, "/subjects/proto-pay/versions", body)
    found = ProtobufSchema(client.schema(made["id"], "PROTOBUF"), (0,), "it")
    assert [field.name for field in found.descriptor.fields] == ["user", "n"]


@pytest.fixture
def topics(
    broker: KafkaBroker,
    model_repository: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    apicurio: ApicurioRegistry,
) -> Iterator[Topics]:
    mode = request.param
    reader = tmp_path / "reader.avsc"
    named = [{"name": "total", "type": "double", "aliases": ["amount"]}, {"name": "limits", "type": LIMITS}]
    user = {"type": "record", "name": "User", "fields": [{"name": "age", "type": ["null", "int"]}]}
    more = [{"name": "user", "type": ["null", user]}, {"name": "country", "type": "string", "default": "DE"}]
    reader.write_text(
        json.dumps({"type": "record", "name": "Payment", "namespace": "shop.events", "fields": [*named, *more]})
    )
    flows = tuple(
        FlowTable(
            source=f"{kind}-{mode}",
            to=f"{kind}-{mode}-scored",
            model="double",
            format="avro" if kind.startswith("avro") else "protobuf",
            schema=str(reader) if kind == "avro-header" else "",
            inputs={
                "x": [
                    "total" if kind == "avro-header" else "amount",
                    "user.age",
                    "limits[0]",
                    {"path": "country", "enum": ["DE", "FR"], "default": -1},
                ]
            },
            outputs={"fraud.score": "y[1]", "fraud.all": "y"},
        )
        for kind in ("avro", "avro-header", "protobuf", "protobuf-header")
    )
    config = Config(flow=flows).replace(
        job={"name": f"registry-{mode}", "execution_mode": mode, "parallelism": 2, "checkpoint_interval_ms": 2000},
        models={"repository": str(model_repository)},
        registry={"url": apicurio.url},
    )
    names = [name for flow in flows for name in (flow.source, flow.to)]
    broker.create_topics(*(Topic(name, PARTITIONS) for name in names))
    made = Topics(broker, config)
    yield made
    made.close()


LIMITS = {"type": "array", "items": "float"}


@pytest.mark.timeout(500)
@pytest.mark.parametrize("topics", FIRST_THREAD, indirect=True)
def test_flows_at_the_real_registry_follow_schemas(
    topics: Topics, apicurio: ApicurioRegistry, run_there: Callable[..., None], tmp_path: Path
) -> None:
    by_kind = {flow.source.rpartition("-")[0]: (flow.source, flow.to) for flow in topics.config.flow}
    config = tmp_path / "config.json"
    about = {"bootstrap": topics.config.kafka.bootstrap_servers, "registry": apicurio.url, "topics": by_kind}
    config.write_text(json.dumps(about))
    running = job.start(topics.config)
    for phase in (1, 2, 3):
        run_there("registry_side.py", "produce", str(config), str(phase))
        run_there("registry_side.py", "consume", str(config), str(phase))
    assert running.status() == "RUNNING"
    running.cancel()
    for kind, (source, to) in by_kind.items():
        versions = 3 if kind == "protobuf" else 2
        assert ask(apicurio.url, f"/subjects/{to}-value/versions")[1] == list(range(1, versions + 1))
        # The registry compares.
        wrong = (
            {"schema": json.dumps(LAST)}
            if kind.startswith("avro")
            else {
                "schema": text_of(("id", 1, FieldDescriptorProto.TYPE_INT64)),
                "schemaType": "PROTOBUF",
            }
        )
        assert ask(apicurio.url, f"/subjects/{to}-value/versions", wrong)[0] == 409, source
