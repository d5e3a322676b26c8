"""The description of the HTTP door: OpenAPI, and a page that lists its paths and models."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from anabranch import __version__
from anabranch.gateway.model_service import ModelService

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _tensor(least_axis: int, **more: Any) -> dict[str, Any]:
    shape = {"type": "array", "items": {"type": "integer", "minimum": least_axis}}
    return _object("name", "shape", "datatype", name=_TEXT, shape=shape, datatype=_TEXT, **more)


_TENSOR = _tensor(0, data={"type": "array", "items": {}}, parameters={"type": "object"})
_DESCRIBED = {"type": "array", "items": _tensor(-1)}
_SERVER = _object("name", "version", "extensions", name=_TEXT, version=_TEXT, extensions=_TEXTS)
_METADATA = _object(
    "name",
    "platform",
    "inputs",
    "outputs",
    name=_TEXT,
    versions=_TEXTS,
    platform=_TEXT,
    inputs=_DESCRIBED,
    outputs=_DESCRIBED,
)
_CONFIG = _object("name", "max_batch_size", name=_TEXT, max_batch_size={"type": "integer", "minimum": 0})
_STATS = _object("model_stats", model_stats={"type": "array", "items": _object("name", "version")})
_INDEX = {"type": "array", "items": _object("name", "version", "state", name=_TEXT, version=_TEXT, state=_TEXT)}
_ANSWER = _object(
    "model_name",
    "outputs",
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    parameters={"type": "object"},
    outputs={"type": "array", "items": _TENSOR},
)
_ERROR = _object("error", "code", error=_TEXT, code=_TEXT)
#: Path, meaning, media type and schema of the answer.
_PATHS: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
    ("get", "/v2", "Server metadata", "application/json", _SERVER),
    ("get", "/v2/health/live", "Liveness", "application/json", _object("live")),
    ("get", "/v2/health/ready", "Readiness", "application/json", _object("ready")),
    ("get", "/v2/models", "Names of the models", "application/json", _object("models", models=_TEXTS)),
    ("get", "/v2/models/stats", "Counts of this gateway", "application/json", _STATS),
    ("get", "/metrics", "Metrics for Prometheus", "text/plain", _TEXT),
    ("post", "/v2/repository/index", "Models and versions", "application/json", _INDEX),
    ("get", "{model}", "Model metadata", "application/json", _METADATA),
    ("get", "{model}/ready", "Readiness of a model", "application/json", {"type": "object"}),
    ("get", "{model}/config", "Model configuration", "application/json", _CONFIG),
    ("get", "{model}/stats", "Counts of a model", "application/json", _STATS),
    ("post", "{model}/infer", "Inference", "application/json", _ANSWER),
    ("post", "{model}/infer_stream", "Inference by server-sent events", "text/event-stream", {}),
)
_MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
    },
}
_ERRORS = {
    "400": "bad request",
    "404": "unknown",
    "413": "too large",
    "422": "failed rows",
    "503": "busy",
    "504": "late",
}


def open_api(service: ModelService) -> dict[str, Any]:
    """Return the OpenAPI description, with the served models as values."""
    paths: dict[str, Any] = {}
    models = service.served.all()
    places = [
        _place("model", dict.fromkeys(each.name for each in models)),
        _place("version", dict.fromkeys(["latest", *(each.version for each in models)])),
    ]
    for method, path, summary, media_type, schema in _PATHS:
        for prefix in _MODEL_PATHS if path.startswith("{model}") else ("",):
            full = path.replace("{model}", prefix, 1) if prefix else path
            parameters = [each for each in places if f"{{{each['name']}}}" in full]
            responses = {"200": {"description": "success", "content": {media_type: {"schema": schema}}}}
            failed = {"application/json": {"schema": _ERROR}}
            responses |= {status: {"description": meaning, "content": failed} for status, meaning in _ERRORS.items()}
            operation: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": responses}
            if method == "post":
                body = _INFER if "/infer" in full else {"type": "object"}
                operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
            paths.setdefault(full, {})[method] = operation
    names = ", ".join(service.served.models) or "none yet"
    info = {"title": "Anabranch", "version": __version__, "description": f"Served models: {names}"}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _place(name: str, values: Iterable[str]) -> dict[str, Any]:
    known = list(values)
    return {"name": name, "in": "path", "required": True, "schema": _TEXT | ({"enum": known} if known else {})}


def page(service: ModelService) -> str:
    """Return a page without scripts that lists models and paths."""
    models = "".join(
        f"<li><code>{escape(each.name)}/{escape(each.version)}</code></li>" for each in service.served.all()
    )
    paths = "".join(
        f"<tr><td><code>{method.upper()} {escape(path.replace('{model}', _MODEL_PATHS[0], 1))}</code></td>"
        f"<td>{escape(summary)}</td></tr>"
        for method, path, summary, *_ in _PATHS
    )
    return (
        '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Anabranch</title>'
        "<style>:root{color-scheme:light dark}body{font:1rem/1.5 system-ui;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}td{padding:.2rem 1rem .2rem 0}</style>"
        f"<h1>Anabranch {escape(__version__)}</h1><h2>Models</h2><ul>{models or '<li>none yet</li>'}</ul>"
        f'<h2>Paths</h2><table>{paths}</table><p><a href="/v2/docs/dataplane.json">OpenAPI</a></p></html>'
    )
