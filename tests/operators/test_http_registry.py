"""HttpRegistry against a small server with Confluent's REST interface."""

import base64
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from anabranch.operators.core.flows.formats.protobuf_schema import ProtobufSchema
from anabranch.operators.core.flows.formats.registered_schemas import Registered, RegisteredSchema
from anabranch.operators.registry import http_registry
from anabranch.operators.registry.http_registry import HttpRegistry, RegistryAccess
from anabranch.schemas.errors import RegistryUnavailable, SchemaRefused, UnknownSchema
from tests.schema_registry import RegistryServer


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


GUID = "12345678-9abc-def0-1234-56789abcdef0"
FILE = FileDescriptorProto(name="a.proto", syntax="proto3", message_type=[DescriptorProto(name="P")])
DESCRIPTOR = base64.b64encode(FILE.SerializeToString()).decode()


def client(server: RegistryServer, **access: Any) -> HttpRegistry:
    return HttpRegistry(RegistryAccess(url=server.url, **access), sleep=lambda _: None)


def test_schema_is_asked_for_once(server: RegistryServer) -> None:
    server.answers["/schemas/ids/7"] = [(200, {"schema": '"int"'})]
    registry = client(server, username="me", password="pass")
    assert [registry.schema(7) for _ in range(3)] == [RegisteredSchema('"int"')] * 3
    token = base64.b64encode(b"me:pass").decode()
    assert server.asked == [("/schemas/ids/7", None, f"Basic {token}")]
    copy = pickle.loads(pickle.dumps(registry))
    assert copy.schema(7).text == '"int"'
    assert len(server.asked) == 2


def test_schema_with_references_has_their_texts(server: RegistryServer) -> None:
    user, money = {"name": "U", "subject": "user", "version": 2}, {"name": "M", "subject": "a/b", "version": 1}
    server.answers["/schemas/ids/1"] = [(200, {"schema": "top", "references": [user, money]})]
    server.answers["/subjects/user/versions/2"] = [(200, {"schema": "U", "references": [money]})]
    server.answers["/subjects/a%2Fb/versions/1"] = [(200, {"schema": "M"})]
    assert client(server).schema(1) == RegisteredSchema("top", (user, money), (("M", "M"), ("U", "U")))


def test_schema_is_found_by_guid(server: RegistryServer) -> None:
    server.answers[f"/schemas/guids/{GUID}"] = [(200, {"schema": '"int"', "references": None})]
    assert client(server).schema(GUID) == RegisteredSchema('"int"')


def protobuf(text: Any, **more: Any) -> tuple[int, Any]:
    return 200, {"schema": text, "schemaType": "PROTOBUF", **more}


def test_protobuf_descriptor_is_taken_as_it_is(server: RegistryServer) -> None:
    server.answers["/schemas/ids/1"] = [protobuf(DESCRIPTOR)]
    assert client(server).schema(1, "PROTOBUF").text == DESCRIPTOR
    assert len(server.asked) == 1


def test_protobuf_text_is_asked_for_as_descriptor(server: RegistryServer) -> None:
    server.answers["/schemas/ids/1"] = [protobuf('syntax = "proto3"; message P {}')]
    server.answers["/schemas/ids/1?format=serialized"] = [protobuf(DESCRIPTOR)]
    assert client(server).schema(1, "PROTOBUF").text == DESCRIPTOR


@pytest.mark.parametrize("answer", [(500, b""), (404, b""), protobuf("\n\x07a.proto"), (200, {})])
def test_protobuf_text_without_descriptor_is_compiled(server: RegistryServer, answer: Any) -> None:
    user = {"name": "shop/user.proto", "subject": "user", "version": 1}
    text = 'syntax = "proto3"; import "shop/user.proto"; import "google/protobuf/timestamp.proto"; '
    body = "message P { U user = 1; google.protobuf.Timestamp at = 2; }"
    server.answers["/schemas/ids/1"] = [protobuf(text + body, references=[user])]
    server.answers["/subjects/user/versions/1"] = [protobuf('syntax = "proto3"; message U { int32 age = 1; }')]
    for path in ("/schemas/ids/1", "/subjects/user/versions/1"):
        server.answers[f"{path}?format=serialized"] = [answer]
    found = ProtobufSchema(client(server).schema(1, "PROTOBUF"), (0,), "it").descriptor
    kinds: list[Any] = [field.message_type for field in found.fields]
    assert [kind.full_name for kind in kinds] == ["U", "google.protobuf.Timestamp"]
    assert len(server.asked) == 4


def test_protobuf_text_at_fault_is_unknown(server: RegistryServer) -> None:
    server.answers["/schemas/ids/1"] = [protobuf("mess P {}")]
    registry = client(server)
    for _ in range(2):
        with pytest.raises(UnknownSchema, match="schema 1 is not a file that protoc compiles: see its message"):
            registry.schema(1, "PROTOBUF")
    assert len(server.asked) == 2


def test_protobuf_text_without_protoc_names_the_extra(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc_tools", None)
    server.answers["/schemas/ids/1"] = [protobuf('syntax = "proto3"; message P {}')]
    with pytest.raises(UnknownSchema, match=r"run pip install 'anabranch\[protobuf\]' on each machine"):
        client(server).schema(1, "PROTOBUF")


def test_unknown_schema_is_remembered_for_a_while(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = client(server)
    for _ in range(3):
        with pytest.raises(UnknownSchema, match="answers to /schemas/ids/9: 404 Schema 9 not found"):
            registry.schema(9)
    assert len(server.asked) == 1
    server.answers["/schemas/ids/9"] = [(200, {"schema": "late"})]
    monkeypatch.setattr(http_registry, "_FORGET_S", 0.0)
    assert registry.schema(9).text == "late"


def test_schema_of_another_kind_is_refused(server: RegistryServer) -> None:
    server.answers["/schemas/ids/9"] = [(200, {"schema": "x", "schemaType": "JSON"})]
    registry = client(server)
    for _ in range(2):
        with pytest.raises(UnknownSchema, match="schema 9 is JSON, expected AVRO"):
            registry.schema(9)
    assert len(server.asked) == 1


def test_register_schema_gives_its_number_once(server: RegistryServer) -> None:
    path = "/subjects/scored-value/versions"
    server.answers[path] = [(200, {"id": 12, "guid": GUID})]
    registry, schema = client(server), RegisteredSchema("s", ({"name": "U", "subject": "u", "version": 1},))
    assert [registry.register("scored-value", schema) for _ in range(2)] == [Registered(12, GUID)] * 2
    assert server.asked == [(path, {"schema": "s", "schemaType": "AVRO", "references": list(schema.references)}, "")]


def test_register_incompatible_schema_is_refused(server: RegistryServer) -> None:
    server.answers["/subjects/s/versions"] = [(409, {"error_code": 409, "message": "Schema being registered is bad"})]
    with pytest.raises(SchemaRefused, match="409 Schema being registered is bad"):
        client(server).register("s", RegisteredSchema("x"))


def test_failing_registry_is_asked_again(server: RegistryServer) -> None:
    server.answers["/schemas/ids/1"] = [(500, b"oops"), (429, b""), (200, b"[]"), (200, b"no"), (200, {"schema": "s"})]
    assert client(server).schema(1).text == "s"
    assert len(server.asked) == 5


@pytest.mark.slow
def test_registry_that_never_answers_is_unavailable(server: RegistryServer) -> None:
    server.answers["/schemas/ids/1"] = [(503, b"")]
    registry = client(server, timeout_s=1.5)
    with pytest.raises(RegistryUnavailable, match=r"has not answered within 1.5 s \("):
        registry.schema(1)
    server.answers["/schemas/ids/1"] = [(200, {"schema": "s"})]
    assert registry.schema(1).text == "s"


def test_latest_schema_of_a_subject_is_given(server: RegistryServer) -> None:
    server.answers["/subjects/payments-value/versions/latest"] = [(200, {"schema": "s", "id": 3})]
    assert client(server).latest("payments-value").text == "s"
