"""A headless browser, and a server of the page whose answers a test writes."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from nlp_mtl.serving.app import CONTENT_SECURITY_POLICY, PAGE

KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,1400",
]


def missing(what: str) -> None:
    """Skip; but where continuous integration runs, the page must not go untested."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@contextmanager
def opened(profile: Path) -> Iterator[Any]:
    """Chromium, with a new profile."""
    try:
        from selenium import webdriver
    except ImportError:
        missing("selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        missing("chromium")
    chromedriver = shutil.which("chromedriver")  # given, or selenium would download one
    if not chromedriver:
        missing("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """The page in a browser, used as people do."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get_log("browser")  # what earlier pages left
        browser.get(url)
        self.wait()

    def wait(self) -> None:
        """Until the page waits for nothing."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60, 0.02).until(
            lambda _: self.js("return !document.getElementById('send').disabled")
        )

    def js(self, script: str, *given: Any) -> Any:
        return self.browser.execute_script(script, *given)

    def get(self, id: str) -> Any:
        return self.browser.find_element("id", id)

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def texts(self, css: str) -> list[str]:
        return self.js("return Array.from(document.querySelectorAll(arguments[0]), (one) => one.textContent)", css)

    def fill(self, text: str, id: str = "text") -> None:
        """As pasted: drivers cannot type what is beyond the basic plane, and are slow."""
        self.js(
            "const box = document.getElementById(arguments[0]); box.value = arguments[1];"
            "box.dispatchEvent(new Event('input', {bubbles: true}))",
            id,
            text,
        )

    def ask(self, text: str) -> None:
        self.fill(text)
        self.get("send").click()
        self.wait()

    def tick(self, *names: str) -> None:
        """These tasks, and no others."""
        for choice in self.all(".choices label"):
            box = choice.find_element("css selector", "input")
            if choice.is_displayed() and box.is_selected() != (choice.text.split()[0] in names):
                choice.click()

    def shown(self, css: str) -> list[tuple[str, int, int]]:
        """The texts of elements without their labels, and where they are in the text, in code points."""
        script = """
            const plain = (node) => {
                const copy = node.cloneContents ? node.cloneContents() : node.cloneNode(true);
                copy.querySelectorAll('.kind').forEach((kind) => kind.remove());
                return copy.textContent;
            };
            return Array.from(document.querySelectorAll(arguments[0]), (made) => {
                const before = document.createRange();
                before.selectNodeContents(made.closest('.text'));
                before.setEndBefore(made);
                return [plain(made), Array.from(plain(before)).length];
            })"""
        return [(text, start, start + len(text)) for text, start in self.js(script, css)]

    def open(self, id: str) -> str:
        """What a part at the end of the page holds, once it is unfolded."""
        if not self.get(id).get_attribute("open"):
            self.all(f"#{id} summary")[0].click()
        self.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.get(f"{id}-text").get_property("textContent")

    def emulate(self, command: str, **values: Any) -> None:
        self.browser.execute_cdp_cmd(f"Emulation.{command}", values)

    def width(self, pixels: int) -> None:
        self.emulate("setDeviceMetricsOverride", width=pixels, height=740, deviceScaleFactor=1, mobile=True)

    def scheme(self, name: str) -> None:
        self.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])


class Stub:
    """What a served page is told: tasks, and an answer to each body, as (status, JSON, headers)."""

    def __init__(
        self, tasks: list[dict[str, Any]], answer: Callable[[dict[str, Any]], Any], model: str = "stub"
    ) -> None:
        self.told = {"model": model, "tasks": tasks, "limits": {"max_texts": 1000, "max_characters": 100_000}}
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.refusal: tuple[int, Any, dict[str, str]] | None = None
        self.url = ""

    def reply(self, path: str, body: bytes | None) -> tuple[int, Any, dict[str, str]]:
        if path == "/tasks":
            return 200, self.told, {}
        if path != "/predict" or body is None:
            return 404, {"detail": "not found"}, {}
        self.asked.append(json.loads(body))
        if self.refusal:
            return self.refusal
        answers = self.answer(self.asked[-1])
        return 200, {"predictions": {task: answers[task] for task in self.asked[-1]["tasks"]}}, {}


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that no longer waits is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def stubbed(
    tasks: list[dict[str, Any]], answer: Callable[[dict[str, Any]], Any], model: str = "stub", prefix: str = ""
) -> Iterator[Stub]:
    """A server on 127.0.0.1 of the real page, which predicts what ``answer`` says."""
    stub = Stub(tasks, answer, model)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = PAGE / (self.within().lstrip("/") or "index.html")
            if file.parent == PAGE and file.is_file():
                self.send(
                    200, file.read_bytes(), KINDS[file.suffix[1:]], {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
                )
            else:
                self.send_json(*stub.reply(self.within(), None))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_json(*stub.reply(self.within(), body))

        def within(self) -> str:
            return self.path.removeprefix(prefix) if self.path.startswith(prefix) else "/elsewhere"

        def send_json(self, status: int, told: Any, headers: dict[str, str]) -> None:
            self.send(status, json.dumps(told).encode(), "application/json", headers)

        def send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}{prefix}/"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
