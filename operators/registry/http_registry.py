"""Client of a schema registry with Confluent's REST interface."""

import base64
import json
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec

from anabranch.operators.core.flows.formats.registered_schemas import (
    Kind,
    Registered,
    RegisteredSchema,
    SchemaId,
)
from anabranch.operators.registry.protobuf_text import compiled, is_descriptor
from anabranch.schemas.errors import AnabranchError, RegistryUnavailable, SchemaRefused, UnknownSchema
from anabranch.schemas.limits import MAX_REMEMBERED_REFUSALS

#: A schema that was unknown or refused is asked for again.
_FORGET_S = 10.0
_CALL_S = 10.0
_CONTENT = "application/vnd.schemaregistry.v1+json"
_TRANSIENT = (408, 429)


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
        self._schemas: dict[SchemaId, RegisteredSchema] = {}
        self._registered: dict[tuple[str, str], Registered] = {}
        self._refused: dict[object, tuple[float, AnabranchError]] = {}

    def __reduce__(self) -> Any:
        return HttpRegistry, (self._access,)

    def schema(self, schema_id: SchemaId, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return a schema, or raise UnknownSchema or RegistryUnavailable."""
        found = self._schemas.get(schema_id)
        if found is None:
            path = f"/schemas/{'guids' if isinstance(schema_id, str) else 'ids'}/{schema_id}"
            found = self._schemas[schema_id] = self._read(path, f"schema {schema_id}", kind)
        return found

    def latest(self, subject: str, kind: Kind = "AVRO") -> RegisteredSchema:
        """Return the newest schema of a subject, or raise UnknownSchema or RegistryUnavailable."""
        return self._read(f"/subjects/{quote(subject, safe='')}/versions/latest", subject, kind)

    def register(self, subject: str, schema: RegisteredSchema) -> Registered:
        """Return the names of a schema, or raise SchemaRefused or RegistryUnavailable."""
        key = (subject, schema.text)
        found = self._registered.get(key)
        if found is None:
            body = {"schema": schema.text, "schemaType": schema.kind, "references": schema.references}
            answer = self._ask(key, f"/subjects/{quote(subject, safe='')}/versions", body, SchemaRefused)
            found = self._registered[key] = Registered(int(answer["id"]), str(answer.get("guid") or ""))
        return found

    def _read(self, path: str, name: str, kind: Kind) -> RegisteredSchema:
        answer = self._ask(path, path, None, UnknownSchema)
        found = answer.get("schemaType", "AVRO")
        if found != kind:
            wrong = UnknownSchema(f"{name} is {found}, expected {kind}: correct the flow's format")
            raise self._remembered(path, wrong)
        texts: dict[str, str] = {}
        self._add_references(answer, texts, kind)
        text = self._text(path, answer, name, kind, texts)
        return RegisteredSchema(text, tuple(answer.get("references") or ()), tuple(texts.items()), kind)

    def _add_references(self, answer: dict[str, Any], texts: dict[str, str], kind: Kind) -> None:
        for reference in answer.get("references") or ():
            name = reference["name"]
            if name not in texts:
                path = f"/subjects/{quote(reference['subject'], safe='')}/versions/{reference['version']}"
                referred = self._ask(path, path, None, UnknownSchema)
                self._add_references(referred, texts, kind)
                texts[name] = self._text(path, referred, name, kind, texts)

    def _text(self, path: str, answer: dict[str, Any], name: str, kind: Kind, others: Mapping[str, str]) -> str:
        """Return the text of a schema; of Protobuf its descriptor.

        Confluent's registry makes a descriptor of a text. Apicurio's cannot, and fails for a descriptor.
        """
        text: str = answer["schema"]
        if kind == "AVRO" or is_descriptor(text):
            return text
        with suppress(UnknownSchema, RegistryUnavailable, KeyError):
            asked = f"{path}?format=serialized"
            serialized: str = self._ask(asked, asked, None, UnknownSchema, tries=1)["schema"]
            if is_descriptor(serialized):
                return serialized
        try:
            return compiled(text, name, others)
        except UnknownSchema as error:
            self._remembered(path, error)
            raise

    def _ask(self, key: object, path: str, body: Any, refusal: type[AnabranchError], tries: int = 0) -> dict[str, Any]:
        """Ask until the registry answers, or that often; a refusal is remembered for a while."""
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
                    raise self._remembered(key, found) from None
            except (OSError, HTTPException, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            tries -= 1
            if not tries or time.monotonic() > until_s:
                raise RegistryUnavailable(
                    f"the registry {self._access.url} has not answered within {self._access.timeout_s:g} s ({reason}): "
                    "start it, and send the event again"
                )
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

    def _remembered(self, key: object, refused: AnabranchError) -> AnabranchError:
        if len(self._refused) >= MAX_REMEMBERED_REFUSALS:
            self._refused.clear()
        self._refused[key] = (time.monotonic(), refused)
        return refused

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
