"""A schema registry with Confluent's REST interface, in this process."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class RegistryServer(ThreadingHTTPServer):
    """Keeps schemas, and gives prepared answers by path: each once, the last one for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, Any, str]] = []
        self.schemas: list[str] = []
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

    def add(self, text: str) -> int:
        with self._turn:
            if text not in self.schemas:
                self.schemas.append(text)
            return self.schemas.index(text) + 1

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if answers := self.answers.get(path):
            return answers.pop(0) if len(answers) > 1 else answers[0]
        number = path.removeprefix("/schemas/ids/")
        if number.isdecimal() and 0 < int(number) <= len(self.schemas):
            return 200, {"schema": self.schemas[int(number) - 1]}
        if body is not None and path.endswith("/versions"):
            return 200, {"id": self.add(body["schema"])}
        return 404, {"error_code": 40403, "message": "Schema not found"}


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
