"""The page in headless Chromium: scripts, keyboard, phone, dark and light. Skipped without `chromium-driver`."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import pytest

from anabranch.stack.ports import free_port
from tests.anabranch.test_dead_letters import REQUESTS
from tests.gateway.conftest import Served
from tests.gateway.test_page import VIEW, Shown

DRIVER = shutil.which("chromedriver")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
TAB, ENTER = "\ue004", "\ue007"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(DRIVER is None, reason="needs chromedriver"),
    pytest.mark.timeout(180),
]


class Browser:
    """A browser, by the WebDriver protocol."""

    def __init__(self, port: int) -> None:
        self._session = f"http://127.0.0.1:{port}/session"
        options = {"args": OPTIONS}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.call("", capabilities={"alwaysMatch": wanted})
        self._session += "/" + answer["sessionId"]

    def call(self, path: str, method: str = "POST", **fields: Any) -> Any:
        body = json.dumps(fields).encode() if method == "POST" else None
        request = Request(self._session + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def run(self, script: str) -> Any:
        return self.call("/execute/sync", script=script, args=[])

    def emulate(self, method: str, **parameters: Any) -> None:
        self.call("/goog/cdp/execute", cmd=method, params=parameters)

    def find(self, selector: str) -> str:
        found = self.call("/element", using="css selector", value=selector)
        return str(found[ELEMENT])

    def click(self, selector: str) -> None:
        self.call(f"/element/{self.find(selector)}/click")

    def type(self, keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def text(self, selector: str = "body") -> str:
        return str(self.call(f"/element/{self.find(selector)}/text", "GET"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", type="browser")]

    def wait_for(self, text: str) -> None:
        give_up_s = time.monotonic() + 60
        while text not in self.text():
            assert time.monotonic() < give_up_s, self.text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert DRIVER is not None
    port = free_port()
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        give_up_s = time.monotonic() + 60
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/status", timeout=10).close()
                break
            except OSError:
                assert time.monotonic() < give_up_s
                time.sleep(0.1)
        made = Browser(port)
        yield made
        made.call("", "DELETE")
    finally:
        driver.kill()
        driver.wait()


@pytest.fixture
def shown(start: Callable[..., Served], browser: Browser) -> tuple[Served, Shown]:
    data = Shown()
    data.dead.fail("r1")
    served = start(page=data, timeout_s=5.0)
    browser.emulate("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    browser.call("/url", url=served.url)
    return served, data


def test_browser_page_updates_itself_until_paused(browser: Browser, shown: tuple[Served, Shown]) -> None:
    _, data = shown
    [job] = VIEW.jobs
    data.view = msgspec.structs.replace(VIEW, jobs=[msgspec.structs.replace(job, name="another")])
    browser.wait_for("Job another is RUNNING")
    browser.click("#pause")
    data.view = VIEW
    time.sleep(4)
    assert "Job another" in browser.text("#live")
    assert browser.complaints() == []


@pytest.mark.parametrize(("width", "mobile"), [(320, True), (768, True), (1200, False)])
def test_browser_page_fits_the_width_of_a_phone(
    browser: Browser, shown: tuple[Served, Shown], width: int, mobile: bool
) -> None:
    browser.emulate("Emulation.setDeviceMetricsOverride", width=width, height=640, deviceScaleFactor=1, mobile=mobile)
    browser.call("/refresh")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    heights = browser.run("return [...document.querySelectorAll('button, select')].map(e => e.offsetHeight)")
    assert min(heights) >= 44, "fingers need room"
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_browser_page_has_contrast_in_dark_and_light(
    browser: Browser, shown: tuple[Served, Shown], scheme: str
) -> None:
    browser.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    colours = browser.run(
        "const paper = getComputedStyle(document.body).backgroundColor;"
        "return [...document.querySelectorAll('body, a, .dim, .bad, .good, caption, th, code')]"
        ".map(e => [getComputedStyle(e).color, paper])"
    )
    assert (luminance(colours[0][1]) < 0.1) == (scheme == "dark")
    assert min(contrast(*pair) for pair in colours) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(R, G, B)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_browser_keyboard_tries_a_model(browser: Browser, shown: tuple[Served, Shown]) -> None:
    browser.type(TAB)
    assert browser.run("return document.activeElement.textContent") == "Skip to the content"
    for _ in range(60):
        browser.type(TAB)
        if browser.run("return document.activeElement.textContent") == "Send":
            break
    style = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid", "the focus is seen"
    browser.type(ENTER)
    browser.wait_for("Answer")
    assert '"datatype"' in browser.text("pre")
    assert len(shown[0].job.requests) == 1


def test_browser_letter_is_sent_again_after_a_question(browser: Browser, shown: tuple[Served, Shown]) -> None:
    _, data = shown
    browser.click("#letters td a:last-child")
    browser.wait_for("Send this request again?")
    assert 0 not in data.dead.store.topics[REQUESTS]
    browser.click("button")
    browser.wait_for("Sent again")
    assert len(data.dead.store.topics[REQUESTS][0]) == 1
    browser.click("a")
    browser.wait_for("Dead letters")
    assert browser.complaints() == []
