"""HTTP door: the Open Inference Protocol's REST, with Triton's extensions for what a job has."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from anabranch import __version__
from anabranch.flink_job.model_summary import ModelSummary
from anabranch.gateway import http_wire
from anabranch.gateway.access import Keys, read_timeout_s
from anabranch.gateway.http_protocol import unless_gone
from anabranch.gateway.job_view import PageData
from anabranch.gateway.model_service import EXTENSIONS, NAME, ModelService
from anabranch.gateway.open_api import open_api, page
from anabranch.gateway.page_routes import Page
from anabranch.gateway.streams import in_order
from anabranch.messaging.errors import ClientClosed, TransportError
from anabranch.messaging.http_connection import PROTOBUF
from anabranch.monitoring.metrics import CONTENT_TYPE, GatewayReading, exposition
from anabranch.schemas.errors import (
    AnabranchError,
    DeadlineExceeded,
    ExchangeFailed,
    IncompleteAnswer,
    InternalError,
    MalformedRequest,
    Overloaded,
    RequestError,
    RequestTooLarge,
    ResponseTooLarge,
    ServingError,
    UnknownModel,
    UnknownVersion,
)
from anabranch.schemas.messages import ErrorResponse
from anabranch.schemas.wire import protobuf_wire

if TYPE_CHECKING:
    from anabranch.gateway.tracing import Traced

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

#: The first class that an error has decides.
_STATUSES: tuple[tuple[type[AnabranchError], int], ...] = (
    (UnknownModel, 404),
    (UnknownVersion, 404),
    (RequestTooLarge, 413),
    (ResponseTooLarge, 413),
    (RequestError, 400),
    (DeadlineExceeded, 504),
    (Overloaded, 503),
    (IncompleteAnswer, 503),
    (ExchangeFailed, 503),
    (TransportError, 503),
    (InternalError, 500),
    # The rows are at fault, or the model: another attempt fails again.
    (ServingError, 422),
)
EVENTS = "text/event-stream"
_RETRY_AFTER_S = "1"
#: Nobody reads it; nginx has the number.
_HUNG_UP = 499
_log = logging.getLogger(__name__)
_INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
_OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
_encoder = msgspec.json.Encoder()


def status_of(error: AnabranchError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


class HttpDoor:
    """The routes of a gateway.

    Args:
        max_body_bytes: Largest body, also decompressed.
        data: Data of the page; None for no page.
        any_host: See `Page`.
    """

    def __init__(
        self,
        service: ModelService,
        keys: Keys,
        *,
        max_body_bytes: int,
        data: PageData | None = None,
        any_host: bool = False,
    ) -> None:
        self._data = data
        self._page = Page(service, data, self._body, any_host=any_host or bool(keys)) if data else None
        self._service = service
        self._keys = keys
        self._max_body_bytes = max_body_bytes

    def app(self) -> ASGIApp:
        """Make the ASGI application: inference, and all else by Starlette's routes."""
        infer, others = self._guarded(self._infer), self._routes()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            found = _INFER.fullmatch(scope.get("path", "")) if scope.get("method") == "POST" else None
            if found is None:
                await others(scope, receive, send)
                return
            scope["path_params"] = {name: value for name, value in found.groupdict().items() if value is not None}
            response = await infer(Request(scope, receive))
            await response(scope, receive, send)

        return app

    def _routes(self) -> Starlette:
        model = "/v2/models/{model}"
        versioned = f"{model}/versions/{{version}}"
        routes: list[BaseRoute] = [
            self._get("/v2", self._server),
            self._get("/v2/", self._server),
            self._get("/v2/health/live", self._live),
            self._get("/v2/health/ready", self._ready),
            self._get("/v2/models", self._models),
            self._get("/v2/models/stats", self._statistics),
            self._get("/v2/docs", self._docs),
            self._get("/v2/docs/dataplane.json", self._open_api),
            self._get("/metrics", self._metrics),
            self._get("/v2/models.json", self._summaries),
            self._post("/v2/infer", self._infer_encoded),
            self._post("/v2/repository/index", self._index),
            self._post("/v2/repository/models/{model}/load", self._fixed),
            self._post("/v2/repository/models/{model}/unload", self._fixed),
        ]
        for path in (model, versioned):
            routes += [
                self._get(path, self._metadata),
                self._get(f"{path}/ready", self._model_ready),
                self._get(f"{path}/config", self._config),
                self._get(f"{path}/stats", self._statistics),
                self._post(f"{path}/infer", self._infer),
                self._post(f"{path}/infer_stream", self._infer_stream),
            ]
        if self._page is not None:
            routes += [
                Route(path, self._guarded(handler, scheme="Basic"), methods=[method])
                for method, path, handler in self._page.routes()
            ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    def _get(self, path: str, handler: Handler) -> Route:
        return Route(path, self._guarded(handler), methods=["GET"])

    def _post(self, path: str, handler: Handler) -> Route:
        return Route(path, self._guarded(handler), methods=["POST"])

    def _guarded(self, handler: Handler, scheme: str = "Bearer") -> Handler:
        async def guarded(request: Request) -> Response:
            headers = request.headers
            if request.scope["path"] not in _OPEN_PATHS and not self._keys.admit(
                headers.get("authorization"), headers.get("x-api-key")
            ):
                error = {"error": "no valid key: send `Authorization: Bearer KEY`", "code": "unauthorized"}
                return _json(error, 401, {"WWW-Authenticate": f'{scheme} realm="anabranch"'})
            try:
                return await handler(request)
            except AnabranchError as error:
                return failed(error)
            except ClientDisconnect:
                return Response(status_code=_HUNG_UP)
            except Exception as error:  # noqa: BLE001 - a defect must not kill the connection
                _log.exception("defect of the gateway at %s", request.scope["path"])
                return failed(InternalError(f"{type(error).__name__}: {error}"))

        return guarded

    # ---- descriptions

    async def _metrics(self, _: Request) -> Response:
        cluster = await self._data.metrics() if self._data else None
        reading = GatewayReading(
            statistics=self._service.statistics()["model_stats"], in_flight=self._service.bridge.in_flight
        )
        return Response(exposition(reading, cluster), media_type=CONTENT_TYPE)

    async def _server(self, _: Request) -> Response:
        return _json({"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = self._service.is_ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _models(self, _: Request) -> Response:
        return _json({"models": list(self._service.served.models)})

    async def _summaries(self, _: Request) -> Response:
        return Response(self._service.served.encode(), media_type="application/json")

    async def _index(self, request: Request) -> Response:
        await self._body(request)
        return _json(self._service.index())

    async def _fixed(self, request: Request) -> Response:
        await self._body(request)
        raise MalformedRequest(
            "the job's repository decides which models are served: change it, and `anabranch upgrade`"
        )

    async def _metadata(self, request: Request) -> Response:
        return _json(self._service.metadata(*_model_of(request)))

    async def _model_ready(self, request: Request) -> Response:
        model = self._service.served.find(*_model_of(request))
        return _json({"name": model.name, "ready": self._service.bridge.is_alive})

    async def _config(self, request: Request) -> Response:
        place = _model_of(request)
        company = {"row_company": {"string_value": self._service.row_company(*place)}}
        return _json(self._service.config(*place) | {"parameters": company})

    async def _statistics(self, request: Request) -> Response:
        return _json(self._service.statistics(*_model_of(request)))

    async def _open_api(self, _: Request) -> Response:
        return _json(open_api(self._service))

    async def _docs(self, _: Request) -> Response:
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(page(self._service), media_type="text/html", headers=headers)

    # ---- inference

    async def _infer(self, request: Request) -> Response:
        name, version = _model_of(request)
        model = self._service.served.find(name, version)
        started_ns = time.perf_counter_ns()
        traced = self._service.trace(model, "http", request.headers.get("traceparent"))
        error: AnabranchError | None = None
        asked: http_wire.HttpRequest | None = None
        held: list[int] = []
        try:
            body = await self._body(request, held)
            length = request.headers.get(http_wire.LENGTH_HEADER)
            asked = http_wire.read_request(body, length, model.name, model.version)
            asked = http_wire.with_names_of(asked, model.inputs, model.outputs)
            answer = await unless_gone(request.scope, self._ask(asked, _stated_s(request), traced))
            return self._answered(request, http_wire.read_answer(answer), asked)
        except AnabranchError as caught:
            error = caught
            return failed(caught, asked.request.id if asked else "")
        except ClientDisconnect:
            error = ClientClosed("the caller hung up")
            raise
        finally:
            self._service.release(sum(held))
            self._service.note(model, started_ns, error, traced)

    async def _infer_stream(self, request: Request) -> Response:
        """Answer each line of the body, a JSON request, by a server-sent event, in the order of the lines."""
        model, stated_s = self._service.served.find(*_model_of(request)), _stated_s(request)
        traceparent = request.headers.get("traceparent")
        held: list[int] = []
        try:
            lines = http_wire.split_requests(await self._body(request, held))
        finally:
            self._service.release(sum(held))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(lines, model, stated_s, traceparent), media_type=EVENTS, headers=headers)

    async def _events(
        self, lines: Sequence[bytes], model: ModelSummary, stated_s: float | None, traceparent: str | None
    ) -> AsyncIterator[bytes]:
        async def each() -> AsyncIterator[bytes]:
            for line in lines:
                yield line

        async for event in in_order(each(), lambda line: self._event(line, model, stated_s, traceparent)):
            yield b"data: %b\n\n" % event

    async def _event(self, line: bytes, model: ModelSummary, stated_s: float | None, traceparent: str | None) -> bytes:
        started_ns = time.perf_counter_ns()
        traced = self._service.trace(model, "http", traceparent)
        error: AnabranchError | None = None
        asked: http_wire.HttpRequest | None = None
        held = 0
        try:
            self._service.hold(len(line))
            held = len(line)
            asked = http_wire.read_request(line, None, model.name, model.version)
            asked = http_wire.with_names_of(asked, model.inputs, model.outputs)
            answer = http_wire.read_answer(await self._ask(asked, stated_s, traced))
            return http_wire.write_answer(answer, http_wire.in_json(asked))[0]
        except AnabranchError as caught:
            error = caught
        except Exception as defect:  # noqa: BLE001 - a defect must not end the stream
            _log.exception("defect of the gateway in a stream")
            error = InternalError(f"{type(defect).__name__}: {defect}")
        finally:
            self._service.release(held)
            self._service.note(model, started_ns, error, traced)
        return http_wire.write_error(error, asked.request.id if asked else "")

    async def _ask(self, asked: http_wire.HttpRequest, stated_s: float | None, traced: Traced | None) -> bytes:
        limit_s = self._service.deadline_s(asked.request.parameters, stated_s)
        message = http_wire.write_request(asked.request, {"timeout": max(1, round(limit_s * 1e6))})
        if len(message) > self._max_body_bytes:
            raise RequestTooLarge(f"the request has {len(message)} bytes, at most {self._max_body_bytes} are allowed")
        return await self._service.ask(message, limit_s, traced)

    async def _infer_encoded(self, request: Request) -> Response:
        """Answer protobuf with protobuf, also errors: the door of `Client("http://…")`."""
        message, error = await self._body(request), None
        try:
            traceparent = request.headers.get("traceparent")
            asking = self._service.ask_encoded(message, _stated_s(request), "http", traceparent)
            answer = await unless_gone(request.scope, asking)
        except AnabranchError as caught:
            error = caught
            answer = protobuf_wire.write_error(ErrorResponse("", caught.code, caught.message))
        return Response(answer, 200 if error is None else status_of(error), media_type=PROTOBUF)

    def _answered(self, request: Request, response: Any, asked: http_wire.HttpRequest) -> Response:
        body, json_size = http_wire.write_answer(response, asked)
        headers = {}
        if json_size is not None:
            headers["Inference-Header-Content-Length"] = str(json_size)
        body, encoding = http_wire.deflate(body, request.headers.get("accept-encoding", ""))
        if encoding:
            headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
        media_type = "application/json" if json_size is None else "application/octet-stream"
        return Response(body, media_type=media_type, headers=headers)

    async def _body(self, request: Request, held: list[int] | None = None) -> bytes:
        """Read the body; `held` gets the sizes of its parts, which the service counts."""
        limit = self._max_body_bytes
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            if held is not None:
                self._service.hold(len(part))
                held.append(len(part))
            parts.append(part)
        encoding = request.headers.get("content-encoding", "").strip().lower()
        return http_wire.inflate(b"".join(parts), encoding, limit)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body has over {limit} bytes: send fewer rows, or raise kafka.max_message_bytes")


def _model_of(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _stated_s(request: Request) -> float | None:
    stated = request.headers.get("grpc-timeout")
    return read_timeout_s(stated) if stated else None


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(content), status, headers, "application/json")


def failed(error: AnabranchError, request_id: str = "") -> Response:
    """Return the response of an error."""
    status = status_of(error)
    headers = {"Retry-After": _RETRY_AFTER_S} if status == 503 else None
    return Response(http_wire.write_error(error, request_id), status, headers, "application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = {404: "no such path: see /v2/docs", 405: "the path does not take this method: see /v2/docs"}
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
    return _json({"error": detail.get(status, str(error)), "code": "http_error"}, status, headers)
