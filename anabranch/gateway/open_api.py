"""The description of the HTTP door: OpenAPI, and a page that lists its paths and models."""

from __future__ import annotations

from html import escape
from typing import Any

from anabranch import __version__
from anabranch.gateway.model_service import ModelService

_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_PATHS = (
    ("get", "/v2", "Server metadata"),
    ("get", "/v2/health/live", "Liveness"),
    ("get", "/v2/health/ready", "Readiness"),
    ("get", "/v2/models", "Names of the models"),
    ("get", "/v2/models/stats", "Counts of this gateway"),
    ("get", "/metrics", "Metrics for Prometheus"),
    ("post", "/v2/repository/index", "Models and versions"),
    ("get", "{model}", "Model metadata"),
    ("get", "{model}/ready", "Readiness of a model"),
    ("get", "{model}/config", "Model configuration"),
    ("get", "{model}/stats", "Counts of a model"),
    ("post", "{model}/infer", "Inference"),
    ("post", "{model}/infer_stream", "Inference by server-sent events"),
)
_MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "data": {"type": "array", "items": {}},
    },
}
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
    """Return the OpenAPI description; its examples are the served models."""
    paths: dict[str, Any] = {}
    for method, path, summary in _PATHS:
        for prefix in _MODEL_PATHS if path.startswith("{model}") else ("",):
            full = path.replace("{model}", prefix, 1) if prefix else path
            parameters = [each for each in (_MODEL, _VERSION) if f"{{{each['name']}}}" in full]
            responses = {"200": {"description": "success", "content": _OBJECT}}
            responses |= {status: {"description": meaning, "content": _OBJECT} for status, meaning in _ERRORS.items()}
            operation: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": responses}
            if method == "post":
                schema = _INFER if "/infer" in full else {"type": "object"}
                operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
            paths.setdefault(full, {})[method] = operation
    names = ", ".join(service.served.models) or "none yet"
    info = {"title": "Anabranch", "version": __version__, "description": f"Served models: {names}"}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def page(service: ModelService) -> str:
    """Return a page without scripts that lists models and paths."""
    models = "".join(
        f"<li><code>{escape(each.name)}/{escape(each.version)}</code></li>" for each in service.served.all()
    )
    paths = "".join(
        f"<tr><td><code>{method.upper()} {escape(path.replace('{model}', _MODEL_PATHS[0], 1))}</code></td>"
        f"<td>{escape(summary)}</td></tr>"
        for method, path, summary in _PATHS
    )
    return (
        '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Anabranch</title>'
        "<style>:root{color-scheme:light dark}body{font:1rem/1.5 system-ui;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}td{padding:.2rem 1rem .2rem 0}</style>"
        f"<h1>Anabranch {escape(__version__)}</h1><h2>Models</h2><ul>{models or '<li>none yet</li>'}</ul>"
        f'<h2>Paths</h2><table>{paths}</table><p><a href="/v2/docs/dataplane.json">OpenAPI</a></p></html>'
    )
