"""The page of a gateway as HTML. Every text from outside is escaped; the page runs no script but its own."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

import msgspec

from anabranch import __version__
from anabranch.dead_letters import LetterFilter, ListedLetter
from anabranch.flink_job.model_summary import ModelSummary
from anabranch.gateway.job_view import JobView
from anabranch.jobs.activity import JobActivity, ModelRate, rate_text
from anabranch.jobs.descriptions import batching_lines, parts_line, tensor_line
from anabranch.jobs.health import JobHealth
from anabranch.jobs.operators import OperatorLoad
from anabranch.schemas.latency_breakdown import PHASES, SUFFIX
from anabranch.schemas.model import TensorSpec
from anabranch.schemas.tensors import BYTES

_STYLE = files(__package__).joinpath("page.css").read_text()
_SCRIPT = files(__package__).joinpath("page.js").read_text()
_SAMPLE_VALUES = 64
_ANSWER_CHARACTERS = 20_000
_MEANINGS = {
    "broker": "in Kafka",
    "admit": "read and checked",
    "queue": "waiting for a batch",
    "batch": "put into a batch",
    "session": "in the model",
    "merge": "parts put together",
    "encode": "answer written",
}


def _hash_of(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash_of(_STYLE)}; script-src {_hash_of(_SCRIPT)}; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; img-src data:"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class TriedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was tried on the page, and its outcome.

    Attributes:
        answer: Its JSON; empty after an error.
        ledger_us: Time of each phase.
        spent_ms: Time in the gateway.
    """

    model: str
    text: str
    answer: str = ""
    error: str = ""
    ledger_us: Mapping[str, float] = {}
    spent_ms: float = 0.0


class ShownLetters(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters as a section of the page."""

    letters: Sequence[ListedLetter] = ()
    chosen: LetterFilter = LetterFilter()
    problem: str = ""


def document(title: str, body: str) -> str:
    """Return a whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>"
    )


def front_page(
    live: str, models: Sequence[ModelSummary], tried: TriedRequest, letters: ShownLetters, *, token: str
) -> str:
    """Return the page.

    Args:
        live: Result of `live_part`.
        token: Proves that a form came from this page.
    """
    sections = (("live", "Job"), ("models", "Models"), ("try", "Try a model"), ("letters", "Dead letters"))
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in sections)
    return document(
        "Anabranch",
        f'<a class="skip" href="#main">Skip to the content</a><header><h1>Anabranch {escape(__version__)}</h1>'
        f'<nav aria-label="Sections"><ul>{links}<li><a href="v2/docs">API</a></li></ul></nav></header>'
        '<main id="main"><p hidden><label><input type="checkbox" id="pause"> Pause updates</label></p>'
        f'<div id="live">{live}</div>{_models(models)}{_try(models, tried, token)}{_letters(letters)}</main>'
        f"<script>{_SCRIPT}</script>",
    )


def live_part(view: JobView, now_ms: float) -> str:
    """Return the part of the page that changes: job, models' rates, and health."""
    alarms = [(each.name, line) for each in view.health for line in each.troubles(now_ms)]
    if view.problem:
        alarms.append(("", view.problem))
    elif not view.jobs:
        alarms.append(("", "no job runs: start one with `anabranch run`"))
    listed = "".join(f'<li class="bad">{escape(f"{name}: {line}" if name else line)}</li>' for name, line in alarms)
    told = f"<ul>{listed}</ul>" if alarms else '<p class="good">No alarms.</p>'
    jobs = "".join(
        f"<p>Job <strong>{escape(job.name)}</strong> is {escape(job.state)} since {_time(job.start_time_ms)}.</p>"
        for job in view.jobs
    )
    return (
        f'<section aria-labelledby="h-job"><h2 id="h-job">Job</h2>{jobs}<div role="status">{told}</div>'
        f"{_flow(view.operators)}{_activity(view.activity)}{_health(view.health, now_ms)}</section>"
    )


def confirm_page(letter: ListedLetter, token: str) -> str:
    """Ask whether a request is to be sent again."""
    warning = "" if letter.is_curable else '<p class="bad">It fails again, unless its sender changes it.</p>'
    return document(
        "Send again? - Anabranch",
        f"<main><h1>Send this request again?</h1>{_facts(_letter_facts(letter))}{warning}"
        "<p>It keeps its id, key and headers. Its deadline counts anew.</p>"
        f'<form method="post"><input type="hidden" name="token" value="{escape(token)}">'
        '<button type="submit">Send again</button></form><p><a href="../../#letters">Back, send nothing</a></p></main>',
    )


def note_page(title: str, text: str, back: str) -> str:
    """Say what happened, and lead back."""
    return document(
        f"{title} - Anabranch",
        f'<main><h1>{escape(title)}</h1><p role="status">{escape(text)}</p>'
        f'<p><a href="{escape(back)}">Back</a></p></main>',
    )


def sample_text(model: ModelSummary) -> str:
    """Return a request for a model, with zeros; `fill` stands for many equal values."""
    inputs = ",\n    ".join(_encode(_sample(spec)) for spec in model.inputs)
    return f'{{\n  "inputs": [\n    {inputs}\n  ]\n}}'


def _sample(spec: TensorSpec) -> dict[str, Any]:
    shape = [1] if spec.any_rank else [1 if axis is None else axis for axis in spec.shape]
    value: Any = "text" if spec.datatype == BYTES else False if spec.datatype == "BOOL" else 0
    count = math.prod(shape)
    values = {"data": [value] * count} if count <= _SAMPLE_VALUES else {"fill": value}
    return {"name": spec.name, "shape": shape, "datatype": spec.datatype, **values}


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# ---- job


def _flow(operators: Sequence[OperatorLoad]) -> str:
    if not operators:
        return ""
    boxes = "".join(f"<li><strong>{escape(each.name)}</strong>{_load(each)}</li>" for each in operators)
    return f'<h3>Operators</h3><ol class="flow" aria-label="Operators, in the order of the data">{boxes}</ol>'


def _load(load: OperatorLoad) -> str:
    tasks = f"{load.tasks} tasks" if load.tasks != 1 else "1 task"
    lines = [tasks if load.running == load.tasks else f"{load.running} of {tasks} run"]
    if load.busy is not None:
        lines.append(f"{load.busy:.0%} busy")
    if load.held_up:
        lines.append(f"{load.held_up:.0%} held up by the next")
    if load.waiting is not None:
        lines.append(f"{load.waiting:,} records wait in Kafka")
    return "".join(f"<span>{escape(line)}</span>" for line in lines)


def _activity(seen: JobActivity | None) -> str:
    if seen is None:
        return ""
    errors = "".join(
        f'<li class="bad">{escape(code)}: {rate_text(rate)} a second</li>' for code, rate in seen.errors_per_s.items()
    )
    told = f"<h3>Errors</h3><ul>{errors}</ul>" if errors else ""
    if not seen.models:
        return f"<h3>Rates</h3><p>No request was answered in the last {seen.seconds:.0f} s.</p>{told}"
    rows = "".join(_rate_row(rate) for rate in seen.models)
    heads = ("requests/s", "rows/s", "rows a batch", "p50 ms", "p99 ms", "queue ms")
    columns = "".join(f'<th scope="col" class="n">{head}</th>' for head in heads)
    return (
        f"<h3>Rates</h3>{_scroll('Rates by model')}<table><caption>The last {seen.seconds:.0f} s, by model</caption>"
        f'<thead><tr><th scope="col">model</th>{columns}<th scope="col">where the time goes</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_key()}{told}"
    )


def _rate_row(rate: ModelRate) -> str:
    cells = (
        rate_text(rate.requests_per_s),
        rate_text(rate.rows_per_s),
        f"{rate.batch_rows:.1f}",
        f"{rate.p50_ms:.1f}",
        f"{rate.p99_ms:.1f}",
        f"{rate.stage_ms.get('queue', 0.0):.1f}",
    )
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f'<tr><th scope="row">{escape(rate.model)}</th>{numbers}<td>{bar(rate.stage_ms)}</td></tr>'


def bar(phases_ms: Mapping[str, float]) -> str:
    """Draw the time of each phase as a bar, with a text for readers that do not see it."""
    whole_ms = sum(phases_ms.values())
    spoken = ", ".join(f"{name} {phases_ms[name]:.2f} ms" for name in PHASES if phases_ms.get(name))
    at, parts = 0.0, ""
    for number, name in enumerate(PHASES):
        width = 100 * phases_ms.get(name, 0.0) / whole_ms if whole_ms else 0.0
        parts += f'<rect class="s{number}" x="{at:.2f}" width="{width:.2f}" height="10"/>' if width else ""
        at += width
    return (
        f'<svg role="img" viewBox="0 0 100 10" preserveAspectRatio="none" aria-label="{escape(spoken or "no time")}">'
        f"{parts}</svg>"
    )


def _key() -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 1 1" aria-hidden="true"><rect class="s{number}" width="1" height="1"/></svg> '
        f"{name}: {_MEANINGS[name]}</li>"
        for number, name in enumerate(PHASES)
    )
    return f'<ul class="key" aria-label="Phases">{items}</ul>'


def _health(health: Sequence[JobHealth], now_ms: float) -> str:
    if not health:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(each.name)}</th><td>{escape(each.checkpoints.summary(now_ms))}</td>'
        f"<td>{escape(each.restarted(now_ms) or 'none')}</td></tr>"
        for each in health
    )
    return (
        f"<h3>Checkpoints and restarts</h3>{_scroll('Checkpoints and restarts')}<table><thead><tr>"
        '<th scope="col">job</th><th scope="col">last checkpoint</th><th scope="col">restarts</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


# ---- models


def _models(models: Sequence[ModelSummary]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="./?model={escape(f"{each.name}/{each.version}")}#try">'
        f"{escape(f'{each.name}/{each.version}')}</a></th>"
        f"<td>{_lines(map(tensor_line, each.inputs))}</td><td>{_lines(map(tensor_line, each.outputs))}</td>"
        f"<td>{_lines(batching_lines(each.batching))}</td><td>{escape(parts_line(each) or 'one model')}</td></tr>"
        for each in models
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("model", "inputs", "outputs", "batching", "made of"))
    table = f"{_scroll('Models')}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    shown = table if models else "<p>No model is served yet.</p>"
    return f'<section id="models" aria-labelledby="h-models"><h2 id="h-models">Models</h2>{shown}</section>'


def _lines(lines: Any) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


# ---- try


def _try(models: Sequence[ModelSummary], tried: TriedRequest, token: str) -> str:
    if not models:
        return ""
    names = [f"{each.name}/{each.version}" for each in models]
    options = "".join(f"<option{' selected' if name == tried.model else ''}>{escape(name)}</option>" for name in names)
    return (
        '<section id="try" aria-labelledby="h-try"><h2 id="h-try">Try a model</h2>'
        '<form class="row" method="get" action="./#try"><label for="model">Model</label>'
        f'<select id="model" name="model">{options}</select><button type="submit">Fill in a sample</button></form>'
        f'<form method="post" action="try#try"><input type="hidden" name="token" value="{escape(token)}">'
        f'<input type="hidden" name="model" value="{escape(tried.model)}">'
        f'<label for="request">Request for {escape(tried.model)}, as JSON</label>'
        '<p class="dim" id="hint">An input may have <code>"fill": 0</code> in place of its data.</p>'
        '<textarea id="request" name="request" spellcheck="false" aria-describedby="hint">'
        f"{escape(tried.text)}</textarea>"
        f'<p><button type="submit">Send</button></p></form>{_outcome(tried)}</section>'
    )


def _outcome(tried: TriedRequest) -> str:
    if tried.error:
        return f'<p class="bad" role="alert">{escape(tried.error)}</p>'
    if not tried.answer:
        return ""
    cut = tried.answer[:_ANSWER_CHARACTERS]
    rest = "" if len(cut) == len(tried.answer) else f"\n… {len(tried.answer):,} characters in all"
    phases_ms = {name: tried.ledger_us[name] / 1000 for name in PHASES if name in tried.ledger_us}
    ledger = ""
    if phases_ms:
        rows = "".join(
            f'<tr><th scope="row">{name}</th><td>{_MEANINGS[name]}</td><td class="n">{spent:.2f} ms</td></tr>'
            for name, spent in phases_ms.items()
        )
        ledger = (
            f"<h3>Time</h3>{bar(phases_ms)}<table><caption>{sum(phases_ms.values()):.2f} ms in the job, "
            f"{tried.spent_ms:.1f} ms seen from the gateway</caption><tbody>{rows}</tbody></table>"
        )
    return (
        '<div role="status"><h3>Answer</h3><pre tabindex="0" aria-label="Answer">'
        f"{escape(cut + rest)}</pre></div>{ledger}"
    )


def ledger_of(parameters: Mapping[str, Any]) -> dict[str, float]:
    """Return the time of each phase in microseconds, from the parameters of an answer."""
    return {name: float(parameters[name + SUFFIX]) for name in PHASES if name + SUFFIX in parameters}


# ---- dead letters


def _letters(shown: ShownLetters) -> str:
    chosen = shown.chosen
    fields = "".join(
        f'<div><label for="{name}">{label}</label>'
        f'<input id="{name}" name="{name}" value="{escape(", ".join(values))}"></div>'
        for name, label, values in (("code", "Code", chosen.codes), ("letters_of", "Model", chosen.models))
    )
    if shown.problem:
        found = f'<p class="bad">{escape(shown.problem)}</p>'
    elif not shown.letters:
        found = "<p>No dead letters.</p>"
    else:
        heads = ("time", "code", "model", "request", "cause", "")
        columns = "".join(f'<th scope="col">{head or "<span>actions</span>"}</th>' for head in heads)
        rows = "".join(_letter_row(each) for each in shown.letters)
        found = (
            f"{_scroll('Dead letters')}<table><caption>The newest first</caption><thead><tr>{columns}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    return (
        '<section id="letters" aria-labelledby="h-letters"><h2 id="h-letters">Dead letters</h2>'
        f'<form class="row" method="get" action="./#letters">{fields}<button type="submit">Filter</button></form>'
        f"{found}</section>"
    )


def _letter_row(letter: ListedLetter) -> str:
    place = f"letters/{escape(letter.id)}"
    what = escape(letter.request_id or letter.id)
    return (
        f"<tr><td>{_time(letter.time_ms)}</td><td>{escape(letter.code)}</td><td>{escape(letter.model)}</td>"
        f"<td><code>{escape(letter.request_id)}</code></td><td>{escape(letter.message)}</td>"
        f'<td><a href="{place}/request" download aria-label="Download request {what}">Download</a> '
        f'<a href="{place}/replay" aria-label="Send request {what} again">Send again</a></td></tr>'
    )


def _letter_facts(letter: ListedLetter) -> dict[str, str]:
    source = letter.source
    return {
        "Request": letter.request_id or "without id",
        "Model": letter.model or "unknown",
        "Error": f"{letter.code}: {letter.message}",
        "Record": f"{source.topic} {source.partition}-{source.offset}",
    }


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{escape(text)}</td></tr>' for name, text in facts.items())
    return f"<table><tbody>{rows}</tbody></table>"


def _scroll(label: str) -> str:
    """Open a box that scrolls sideways, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'


def _time(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return f'<time datetime="{moment.isoformat()}">{moment:%Y-%m-%d %H:%M:%S} UTC</time>'
