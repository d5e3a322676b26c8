"""Client of a schema registry with Confluent's REST interface."""

import base64
import json
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec

from anabranch.operators.core.flows.formats.registered_schemas import Kind, RegisteredSchema
from anabranch.schemas.errors import AnabranchError, RegistryUnavailable, SchemaRefused, UnknownSchema
from anabranch.schemas.limits import MAX_REMEMBERED_REFUSALS

#: A schema that was unknown or refused is asked for again.
_FORGET_S = 10.0
_CALL_S = 10.0
_CONTENT = "application/vnd.schemaregistry.v1+json"
_TRANSIENT = (408, 429)
#: A file of Protobuf comes as its descriptor.
_FORMATS = {"AVRO": "", "PROTOBUF": "?format=serialized"}


class RegistryAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Address and rights; `timeout_s` bounds a question with its repetitions."""

    url: str
    username: str = ""
    password: str = ""
    ca_file: str = ""
    timeout_s: float = 60.0


class HttpRegistry:
    """A registry that remembers answers; see `SchemaRegistry`. Copies in other processes begin without any."""

    def __init__(self, access: RegistryAccess, sleep: Callable[[float], None] = time.sleep) -> None:
        self._access = access
        self._sleep = sleep
        self._schemas: dict[int, RegisteredSchema] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._refused: dict[object, tuple[float, AnabranchError]] = {}

    def __reduce__(self) -> Any:
        return HttpRegistry, (self._access,)

    def schema(self, schema_id: int, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return a schema, or raise UnknownSchema or RegistryUnavailable."""
        found = self._schemas.get(schema_id)
        if found is None:
            answer = self._ask(schema_id, f"/schemas/ids/{schema_id}{_FORMATS[kind]}", None, UnknownSchema)
            found = self._schemas[schema_id] = self._read(answer, f"schema {schema_id}", kind)
        return found

    def latest(self, subject: str, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return the newest schema of a subject, or raise UnknownSchema or RegistryUnavailable."""
        path = f"/subjects/{quote(subject, safe='')}/versions/latest{_FORMATS[kind]}"
        return self._read(self._ask(subject, path, None, UnknownSchema), subject, kind)

    def register(self, subject: str, schema: RegisteredSchema) -> int:
        """Return the number of a schema, or raise SchemaRefused or RegistryUnavailable."""
        key = (subject, schema.text)
        number = self._numbers.get(key)
        if number is None:
            body = {"schema": schema.text, "schemaType": schema.kind, "references": schema.references}
            path = f"/subjects/{quote(subject, safe='')}/versions"
            number = self._numbers[key] = int(self._ask(key, path, body, SchemaRefused)["id"])
        return number

    def _read(self, answer: dict[str, Any], name: str, kind: Kind) -> RegisteredSchema:
        found = answer.get("schemaType", "AVRO")
        if found != kind:
            raise UnknownSchema(f"{name} is {found}, expected {kind}: correct the flow's format")
        texts: dict[str, str] = {}
        self._add_references(answer, texts, kind)
        return RegisteredSchema(answer["schema"], tuple(answer.get("references", ())), tuple(texts.items()), kind)

    def _add_references(self, answer: dict[str, Any], texts: dict[str, str], kind: Kind) -> None:
        for reference in answer.get("references", ()):
            if reference["name"] not in texts:
                path = f"/subjects/{quote(reference['subject'], safe='')}/versions/{reference['version']}"
                referred = self._ask(path, path + _FORMATS[kind], None, UnknownSchema)
                self._add_references(referred, texts, kind)
                texts[reference["name"]] = referred["schema"]

    def _ask(self, key: object, path: str, body: Any, refusal: type[AnabranchError]) -> dict[str, Any]:
        """Ask until the registry answers; a refusal is remembered for a while."""
        refused = self._refused.get(key)
        if refused is not None and time.monotonic() - refused[0] < _FORGET_S:
            raise refused[1]
        until_s, wait_s = time.monotonic() + self._access.timeout_s, 0.1
        while True:
            try:
                return self._call(path, body)
            except HTTPError as error:
                reason = f"{error.code} {_message_of(error)}"
                if error.code < 500 and error.code not in _TRANSIENT:
                    found = refusal(f"the registry {self._access.url} answers to {path}: {reason}")
                    if len(self._refused) >= MAX_REMEMBERED_REFUSALS:
                        self._refused.clear()
                    self._refused[key] = (time.monotonic(), found)
                    raise found from None
            except (OSError, HTTPException, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if time.monotonic() > until_s:
                raise RegistryUnavailable(
                    f"the registry {self._access.url} has not answered within {self._access.timeout_s:g} s ({reason}): "
                    "start it, and send the event again"
                )
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

    def _call(self, path: str, body: Any) -> dict[str, Any]:
        access = self._access
        headers = {"Accept": _CONTENT, "Content-Type": _CONTENT}
        if access.username:
            pair = f"{access.username}:{access.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(access.url.rstrip("/") + path, data, headers)  # noqa: S310 - the configuration has http or https
        context = ssl.create_default_context(cafile=access.ca_file) if access.ca_file else None
        with urlopen(request, timeout=min(_CALL_S, access.timeout_s), context=context) as answer:  # noqa: S310 - as above
            decoded = json.loads(answer.read())
        if not isinstance(decoded, dict):
            raise ValueError("the answer is not a JSON object")  # noqa: TRY004 - as for other answers
        return decoded


def _message_of(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
