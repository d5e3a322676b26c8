"""The page of a gateway, as a browser without scripts gets it; with a fake job, letters in memory and no Flink."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any, TypeVar
from urllib.parse import urlencode

import pytest

from anabranch.dead_letters import DeadLetters
from anabranch.flink_job.config import Config
from anabranch.gateway import page_html
from anabranch.gateway.access import Keys
from anabranch.gateway.job_view import JobObserver, JobView, PageData
from anabranch.gateway.page_routes import is_own_host
from anabranch.jobs.activity import JobActivity, ModelRate
from anabranch.jobs.checkpoints import CheckpointHealth
from anabranch.jobs.health import JobHealth
from anabranch.jobs.operators import OperatorLoad, operator_loads
from anabranch.messaging.errors import BrokerUnreachable
from anabranch.schemas.latency_breakdown import PHASES
from anabranch.stack.flink.rest import FlinkJob
from tests.anabranch.test_dead_letters import REQUESTS, Job
from tests.gateway.conftest import MODELS, Served, summary
from tests.gateway.test_http import call

T = TypeVar("T")
#: Elements that have no end tag.
VOID = {"meta", "link", "input", "rect"}
STAGES = dict.fromkeys(PHASES, 0.0) | {"queue": 2.0, "session": 6.0}
VIEW = JobView(
    jobs=[FlinkJob("j", "ocr", "RUNNING", 1)],
    health=[
        JobHealth(
            job_id="j",
            name="ocr",
            checkpoints=CheckpointHealth(completed_ms=1, failures=2, cause="disk <full>"),
            restarts=1,
            restart_cause="a task was lost",
            restarted_ms=1,
        )
    ],
    operators=[
        OperatorLoad(name="serve", tasks=2, running=1, busy=0.25, waiting=1234),
        OperatorLoad(name="errors", tasks=1, running=1),
    ],
    activity=JobActivity([ModelRate("same-2", 66.0, 132.0, 2.0, 3.0, 9.0, STAGES)], {"overloaded": 0.5}, seconds=2.0),
)


class Shown(PageData):
    """Data that a test sets."""

    def __init__(self, job: Job | None = None, view: JobView = VIEW) -> None:
        super().__init__(Config(), "")
        self.dead = job or Job()
        self.view = view
        self.problem: Exception | None = None

    async def job(self) -> JobView:
        return self.view

    async def with_letters(self, work: Callable[[DeadLetters], T]) -> T:
        if self.problem:
            raise self.problem
        return work(self.dead.letters)


class Outline(HTMLParser):
    """Elements of a page, and whether tags are closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"script", "style"}:
            self.words.append(data)

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def data() -> Shown:
    return Shown()


@pytest.fixture
def served(start: Callable[..., Served], data: Shown) -> Served:
    return start(page=data, timeout_s=5.0)


def page(served: Served, path: str = "/", status: int = 200, **options: Any) -> Outline:
    found, body, headers = call(served, path, **options)
    assert found == status, body
    assert headers["content-type"] == "text/html; charset=utf-8"
    return Outline(body.decode())


def form(path: str, served: Served, **fields: str) -> dict[str, Any]:
    """Fields with the token of a page, as the body of a POST."""
    [token, *_] = [each["value"] for each in page(served, path).all("input") if each.get("name") == "token"]
    return {"body": urlencode({"token": token, **fields}).encode()}


def test_page_shows_rates_operators_and_health_in_words(served: Served) -> None:
    text = page(served).text
    for expected in (
        "Job ocr is RUNNING",
        "serve 1 of 2 tasks run 25% busy 1,234 records wait in Kafka",
        "same-2 66 132 2.0 3.0 9.0 2.0",
        "overloaded: 0.5 a second",
        "failed 2 times in a row: disk <full>",
        "once, the last",
        "a task was lost",
        "rows of any requests",
        "x FP32 [any, 2]",
    ):
        assert expected in text, text


def test_page_is_readable_without_eyes_mouse_or_wide_screen(served: Served, data: Shown) -> None:
    data.dead.fail("r1")
    outline = page(served)
    [html] = outline.all("html")
    assert html["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in outline.all("meta")
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {each.get("for") for each in outline.all("label")}
    for each in outline.all("input", "select", "textarea"):
        assert each.get("type") in {"hidden", "checkbox"} or each["id"] in labels
    for each in outline.all("svg"):
        assert each.get("aria-hidden") or each["aria-label"]
    for each in outline.all("section"):
        assert each["aria-labelledby"] in ids
    assert {each["href"] for each in outline.all("a") if each["href"].startswith("#")} <= {f"#{name}" for name in ids}
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in outline.all("div") if "tabindex" in each)
    assert len(outline.all("th")) == len([each for each in outline.all("th") if each["scope"]])


def test_page_loads_nothing_from_elsewhere(served: Served) -> None:
    _, body, headers = call(served, "/")
    outline = Outline(body.decode())
    addresses = [value for _, each in outline.elements for name, value in each.items() if name in {"href", "src"}]
    assert not [each for each in addresses if each.startswith(("http", "//"))]
    assert not [name for _, each in outline.elements for name in each if name == "style" or name.startswith("on")]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        assert f"'sha256-{digest(body.decode(), tag)}'" in policy


def digest(body: str, tag: str) -> str:
    [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL)
    return page_html._hash_of(content).removeprefix("'sha256-").removesuffix("'")


@pytest.mark.parametrize("view", [JobView(problem="no Flink cluster answers <at> x"), JobView()])
def test_page_without_a_job_says_why(served: Served, data: Shown, view: JobView) -> None:
    data.view = view
    assert (view.problem or "no job runs") in page(served).text
    data.problem = BrokerUnreachable("no Kafka broker at x")
    assert "no Kafka broker at x" in page(served).text


def test_page_live_part_is_the_one_of_the_page(served: Served) -> None:
    _, body, _ = call(served, "/live")
    _, whole, _ = call(served, "/")
    without_time = re.compile(rb"\d+ (s|min)")
    assert without_time.sub(b"", body) in without_time.sub(b"", whole)


def test_page_hostile_texts_are_escaped(start: Callable[..., Served], data: Shown) -> None:
    evil = "<script>alert(1)</script>\"'"
    data.dead.fail(evil, evil, evil, evil)
    data.view = JobView(
        jobs=[FlinkJob("j", evil, "RUNNING", 1)],
        health=[JobHealth(job_id="j", name=evil, restarts=1, restart_cause=evil)],
        operators=[OperatorLoad(name=evil, tasks=1, running=1)],
        activity=JobActivity([ModelRate(evil, 1, 1, 1, 1, 1, STAGES)], {evil: 1.0}, seconds=1.0),
    )
    served = start(page=data)
    path = "/?" + urlencode({"code": evil, "letters_of": evil, "model": evil})
    for each in ("/", path):
        _, body, _ = call(served, each)
        Outline(body.decode())
        assert body.count(b"<script>") == 1
    posted = form("/", served, model=evil, request=evil)
    _, body, _ = call(served, "/try", **posted)
    assert body.count(b"<script>") == 1


def test_page_sample_of_each_model_is_a_valid_request(served: Served) -> None:
    for model in MODELS:
        if model.name in {"slow", "bad"}:
            continue
        label = f"{model.name}/{model.version}"
        outline = page(served, f"/?model={label}")
        [chosen] = [each["value"] for each in outline.all("input") if each.get("name") == "model"]
        assert chosen == label
        sample = page_html.sample_text(model)
        assert '"outputs":' in page(served, "/try", **form("/", served, model=label, request=sample)).text.replace(
            '" :', '":'
        )
    assert served.job.requests[-1].parameters["explain"] is True


def test_page_large_sample_is_filled_in(served: Served) -> None:
    large = summary("large", "FP32", shape=(None, 3, 100))
    sample = json.loads(page_html.sample_text(large))
    assert sample["inputs"] == [{"name": "x", "shape": [1, 3, 100], "datatype": "FP32", "fill": 0}]
    filled = json.dumps({"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "fill": 1.5}]})
    page(served, "/try", **form("/", served, model="same/2", request=filled))
    [request] = served.job.requests
    assert request.inputs[0].to_array().tolist() == [[1.5, 1.5]] * 3
    for shape in ([1 << 40], [-1], "x", None):
        text = json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "fill": 1}]})
        assert "malformed_request" in page(served, "/try", **form("/", served, model="same/2", request=text)).text


def test_page_ledger_is_a_bar_and_a_table() -> None:
    ledger = page_html.ledger_of({"queue_us": 2000, "session_us": 6000, "task": 1})
    tried = page_html.TriedRequest(model="m/1", text="", answer="{}", ledger_us=ledger, spent_ms=9.0)
    outline = Outline(page_html.front_page("", MODELS, tried, page_html.ShownLetters(), token=""))
    assert "8.00 ms in the job, 9.0 ms seen from the gateway" in outline.text
    assert "session in the model 6.00 ms" in outline.text
    [bar] = [each for each in outline.all("svg") if each.get("role") == "img"]
    assert bar["aria-label"] == "queue 2.00 ms, session 6.00 ms"
    widths = [each["width"] for each in outline.all("rect") if each.get("height") == "10"]
    assert widths == ["25.00", "75.00"]


def test_page_failed_try_shows_the_error(served: Served) -> None:
    for model, request, code in (
        ("bad/1", page_html.sample_text(MODELS[-1]), "inference_failed"),
        ("no/1", "{", "unknown"),
    ):
        outline = page(served, "/try", **form("/", served, model=model, request=request))
        assert code in outline.text
        assert any(each.get("role") == "alert" for each in outline.all("p"))


def test_page_letters_are_filtered_downloaded_and_replayed(served: Served, data: Shown) -> None:
    first = data.dead.fail("r1", "overloaded", "a")
    data.dead.fail("r2", "wrong_shape", "b")
    assert {"r1", "r2"} <= set(page(served).text.split())
    filtered = page(served, "/?code=wrong_shape&letters_of=").text.split()
    assert "r2" in filtered
    assert "r1" not in filtered
    status, body, headers = call(served, f"/letters/{first}/request")
    assert (status, body) == (200, b"r1")
    assert headers["content-disposition"] == f'attachment; filename="request-{first}.bin"'
    path = f"/letters/{first}/replay"
    asked = page(served, path)
    assert "Send this request again?" in asked.text
    assert 0 not in data.dead.store.topics[REQUESTS], "a look sends nothing"
    assert "Sent again" in page(served, path, **form(path, served)).text
    assert [record.value for record in data.dead.store.topics[REQUESTS][0]] == [b"r1"]
    assert "may have removed it" in page(served, "/letters/0-99/replay", status=404).text


def test_page_forms_of_other_pages_are_refused(served: Served, data: Shown) -> None:
    letter = data.dead.fail("r1")
    for path in ("/try", f"/letters/{letter}/replay"):
        for body in (b"", b"token=guess", b"token=%ff"):
            assert "not from this page" in page(served, path, status=403, body=body, method="POST").text
    assert 0 not in data.dead.store.topics[REQUESTS]
    assert served.job.requests == []
    assert "by its address" in page(served, status=403, headers={"Host": "evil.example:8080"}).text


@pytest.mark.parametrize(
    ("name", "own"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("evil.example", False), ("", False)],
)
def test_own_host_is_an_address_or_localhost(name: str, own: bool) -> None:
    assert is_own_host(name) == own


def test_page_with_keys_asks_the_browser_for_one(start: Callable[..., Served], data: Shown) -> None:
    served = start(page=data, keys=Keys(["0123456789abcdef"]))
    status, _, headers = call(served, "/")
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="anabranch"')
    for password, expected in (("0123456789abcdef", 200), ("wrong", 401)):
        basic = b64encode(f"anyone:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Host": "gateway.example"}
        assert call(served, "/", headers=headers)[0] == expected
    assert call(served, "/", headers={"Authorization": "Basic %%%"})[0] == 401


def test_gateway_without_page_data_has_none(start: Callable[..., Served]) -> None:
    assert call(start(), "/")[0] == 404


def test_observer_without_a_cluster_says_how_to_name_one() -> None:
    assert "--flink-url" in JobObserver(None).view().problem


def test_operator_loads_are_read_from_flink() -> None:
    metrics: dict[str, dict[str, Any]] = {
        "busyTimeMsPerSecond": {"max": "NaN", "sum": "NaN"},
        "backPressuredTimeMsPerSecond": {"max": 250.0, "sum": 300.0},
        "Source__requests.pendingRecords": {"max": 30.0, "sum": 42.0},
    }

    class Flink:
        def get(self, path: str) -> Any:
            if path == "/jobs/j":
                vertex = {"id": "v", "name": "Source: requests -> serve", "parallelism": 2, "tasks": {"RUNNING": 2}}
                return {"vertices": [vertex]}
            if "get=" not in path:
                return [{"id": name} for name in metrics]
            return [{"id": name, **metrics[name]} for name in path.partition("&get=")[2].split(",")]

    rest: Any = Flink()
    [load] = operator_loads(rest, "j")
    assert load == OperatorLoad(name="serve", tasks=2, running=2, busy=None, held_up=0.25, waiting=42)
