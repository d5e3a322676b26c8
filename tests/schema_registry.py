"""A schema registry with Confluent's REST interface, in this process. `tests/interop` compares it with a real one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit
from uuid import UUID


class RegistryServer(ThreadingHTTPServer):
    """Keeps schemas, and gives prepared answers by path: each once, the last one for ever.

    Args:
        has_guids: Also names schemas by GUID, as Confluent's registry does since version 8.
    """

    def __init__(self, *, has_guids: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, Any, str]] = []
        self.kept: list[dict[str, Any]] = []
        self._has_guids = has_guids
        self.subjects: dict[str, list[int]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def schemas(self) -> list[str]:
        """Texts, by number from 1."""
        return [each["schema"] for each in self.kept]

    def add(self, text: str, subject: str = "any", kind: str = "AVRO", references: Any = ()) -> int:
        described = {"schema": text, "schemaType": kind}
        if kind == "AVRO":
            described = {"schema": json.dumps(json.loads(text), separators=(",", ":"))}
        if references:
            described["references"] = references
        with self._turn:
            if described not in self.kept:
                self.kept.append(described)
            number = self.kept.index(described) + 1
            versions = self.subjects.setdefault(subject, [])
            if number not in versions:
                versions.append(number)
        return number

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if answers := self.answers.get(path):
            return answers.pop(0) if len(answers) > 1 else answers[0]
        match urlsplit(path).path.strip("/").split("/"):
            case ["schemas", "ids", number]:
                return self._schema(int(number))
            case ["schemas", "guids", guid] if self._has_guids:
                return self._schema(UUID(guid).int)
            case ["subjects", subject, "versions"] if body is not None:
                return self._register(unquote(subject), body)
            case ["subjects", subject, "versions", version]:
                return self._version(unquote(subject), version)
        return 404, b""

    def _schema(self, number: int) -> tuple[int, Any]:
        if 0 < number <= len(self.kept):
            return 200, self.kept[number - 1]
        return 404, {"error_code": 40403, "message": f"Schema {number} not found."}

    def _register(self, subject: str, body: Any) -> tuple[int, Any]:
        kind = body.get("schemaType", "AVRO")
        try:
            number = self.add(body["schema"], subject, kind, body.get("references"))
            return 200, {"id": number} | ({"guid": str(UUID(int=number))} if self._has_guids else {})
        except ValueError:
            return 422, {"error_code": 42201, "message": "Invalid schema"}

    def _version(self, subject: str, version: str) -> tuple[int, Any]:
        versions = self.subjects.get(subject)
        if not versions:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        at = len(versions) if version == "latest" else int(version)
        if at > len(versions):
            return 404, {"error_code": 40402, "message": f"Version {version} not found."}
        number = versions[at - 1]
        return 200, {"subject": subject, "version": at, "id": number} | self.kept[number - 1]


class Handler(BaseHTTPRequestHandler):
    server: RegistryServer

    def do_GET(self) -> None:
        self.reply(None)

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body: Any) -> None:
        self.server.asked.append((self.path, body, self.headers.get("Authorization", "")))
        status, answer = self.server.answer(self.path, body)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass
