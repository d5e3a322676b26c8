"""Routes of the page: the page itself, trying a model, and dead letters."""

from __future__ import annotations

import hmac
import ipaddress
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from anabranch.dead_letters import DeadLetters, FailedRequest, LetterFilter, ListedLetter
from anabranch.gateway import http_wire, page_html
from anabranch.gateway.job_view import PageData
from anabranch.gateway.model_service import ModelService
from anabranch.gateway.page_html import ShownLetters, TriedRequest
from anabranch.messaging.errors import LetterMissing
from anabranch.schemas.errors import AnabranchError, MalformedRequest

Reader: TypeAlias = Callable[[Request], Awaitable[bytes]]
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

_LETTERS_SHOWN = 20
_MOST_FILLED = 50_000_000
_FORBIDDEN = "this form is not from this page, or is old: load the page again"


class Page:
    """The page of a gateway.

    Args:
        read_body: Reads a bounded body.
        any_host: Takes requests under any host name; otherwise a foreign page could reach this one by its own name.
    """

    def __init__(self, service: ModelService, data: PageData, read_body: Reader, *, any_host: bool) -> None:
        self._service = service
        self._data = data
        self._read_body = read_body
        self._any_host = any_host
        self._token = secrets.token_urlsafe(32)

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Return method, path and handler of each route."""
        listed: Sequence[tuple[str, str, Handler]] = (
            ("GET", "/", self._front),
            ("GET", "/live", self._live),
            ("POST", "/try", self._try),
            ("GET", "/letters/{letter}/request", self._download),
            ("GET", "/letters/{letter}/replay", self._confirm),
            ("POST", "/letters/{letter}/replay", self._replay),
        )
        return [(method, path, self._guarded(handler)) for method, path, handler in listed]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if not self._any_host and not is_own_host(request.url.hostname or ""):
                return _note("Refused", "open this page by its address, such as http://127.0.0.1:8080", 403)
            try:
                return await handler(request)
            except LetterMissing as error:
                return _note("Not found", error.message, 404)
            except AnabranchError as error:
                return _note("It failed", f"{error.code}: {error.message}", 503)

        return guarded

    async def _front(self, request: Request) -> Response:
        return await self._shown(request, self._sample(request.query_params.get("model", "")))

    async def _live(self, _: Request) -> Response:
        return _html(page_html.live_part(await self._data.job(), time.time() * 1000))

    async def _try(self, request: Request) -> Response:
        form = await self._form(request)
        if not self._is_own(form):
            return _note("Refused", _FORBIDDEN, 403)
        name, text = form.get("model", ""), form.get("request", "")
        return await self._shown(request, await self._tried(name, text))

    async def _download(self, request: Request) -> Response:
        letter = request.path_params["letter"]
        original = await self._data.with_letters(lambda letters: letters.original(letter))
        headers = {**page_html.HEADERS, "Content-Disposition": f'attachment; filename="request-{letter}.bin"'}
        return Response(original.value, media_type="application/octet-stream", headers=headers)

    async def _confirm(self, request: Request) -> Response:
        letter = request.path_params["letter"]
        return _html(page_html.confirm_page(await self._data.with_letters(_finds(letter)), self._token))

    async def _replay(self, request: Request) -> Response:
        if not self._is_own(await self._form(request)):
            return _note("Refused", _FORBIDDEN, 403)
        letter = request.path_params["letter"]
        sent: FailedRequest = await self._data.with_letters(lambda letters: letters.replay(letter))
        copied = "" if sent.is_whole else " from the letter, since Kafka has removed its record"
        return _note("Sent again", f"The request of letter {letter} was sent to {sent.topic}{copied}.", 200)

    # ---- parts

    async def _shown(self, request: Request, tried: TriedRequest) -> Response:
        now_ms = time.time() * 1000
        live = page_html.live_part(await self._data.job(), now_ms)
        models, letters = self._service.served.all(), await self._letters(request)
        return _html(page_html.front_page(live, models, tried, letters, token=self._token))

    async def _letters(self, request: Request) -> ShownLetters:
        query = request.query_params
        chosen = LetterFilter(codes=_words(query.get("code", "")), models=_words(query.get("letters_of", "")))

        def read(letters: DeadLetters) -> list[ListedLetter]:
            return letters.last(_LETTERS_SHOWN, chosen)

        try:
            return ShownLetters(letters=await self._data.with_letters(read), chosen=chosen)
        except AnabranchError as error:
            return ShownLetters(problem=error.message, chosen=chosen)

    def _sample(self, label: str) -> TriedRequest:
        models = self._service.served.all()
        model = next((each for each in models if f"{each.name}/{each.version}" == label), models[0] if models else None)
        if model is None:
            return TriedRequest(model="", text="")
        return TriedRequest(model=f"{model.name}/{model.version}", text=page_html.sample_text(model))

    async def _tried(self, label: str, text: str) -> TriedRequest:
        name, _, version = label.rpartition("/")
        started_s = time.perf_counter()
        try:
            model = self._service.served.find(name, version)
            asked = http_wire.read_request(_filled(text), None, model.name, model.version)
            asked = http_wire.in_json(http_wire.with_names_of(asked, model.inputs, model.outputs))
            limit_s = self._service.deadline_s(asked.request.parameters, None)
            more = {"timeout": max(1, round(limit_s * 1e6)), "explain": True}
            answer = http_wire.read_answer(
                await self._service.ask(http_wire.write_request(asked.request, more), limit_s)
            )
        except AnabranchError as error:
            return TriedRequest(model=label, text=text, error=f"{error.code}: {error.message}")
        shown, _ = http_wire.write_answer(answer, asked)
        return TriedRequest(
            model=label,
            text=text,
            answer=msgspec.json.format(shown, indent=2).decode(),
            ledger_us=page_html.ledger_of(answer.parameters),
            spent_ms=(time.perf_counter() - started_s) * 1000,
        )

    async def _form(self, request: Request) -> dict[str, str]:
        body = await self._read_body(request)
        return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}

    def _is_own(self, form: dict[str, str]) -> bool:
        return hmac.compare_digest(form.get("token", "").encode(), self._token.encode())


def is_own_host(name: str) -> bool:
    """Tell whether a host name is an address or `localhost`, which no foreign page has."""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _finds(letter: str) -> Callable[[DeadLetters], ListedLetter]:
    return lambda letters: letters.find(letter)


def _filled(text: str) -> bytes:
    """Write out `fill`; other text is for `read_request` to judge."""
    try:
        request = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return text.encode()
    tensors = request.get("inputs") if isinstance(request, dict) else None
    for tensor in tensors if isinstance(tensors, list) else ():
        if isinstance(tensor, dict) and "fill" in tensor and "data" not in tensor:
            tensor["data"] = [tensor.pop("fill")] * _count(tensor.get("shape"))
    return msgspec.json.encode(request)


def _count(shape: Any) -> int:
    is_shape = isinstance(shape, list) and all(type(axis) is int and axis >= 0 for axis in shape)
    count = math.prod(shape) if is_shape else -1
    if not 0 <= count <= _MOST_FILLED:
        raise MalformedRequest(f"an input with `fill` has shape {shape!r}, expected at most {_MOST_FILLED} elements")
    return count


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _html(text: str, status: int = 200) -> Response:
    return Response(text, status, page_html.HEADERS, "text/html")


def _note(title: str, text: str, status: int) -> Response:
    return _html(page_html.note_page(title, text, "/#letters"), status)
