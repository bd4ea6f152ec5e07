"""The page in Chromium, and a server that refuses, is busy, gone or slow, or wants a token."""

import json
import shutil
import subprocess
import threading
from typing import Any

import pytest
from browser import Page, Stub, stubbed
from page_answers import LABEL, written
from serving_thread import Served, serving

pytestmark = pytest.mark.slow


def test_what_the_server_refuses_is_told_in_its_words(browser: Any, served: Served) -> None:
    page = Page(browser, served.url)
    page.ask("Hello")
    long = "x" * (served.settings.max_characters + 1)
    page.ask(long)
    assert page.get("error").get_attribute("role") == "alert"
    assert page.get("error").text == served.post(texts=long).json()["detail"]
    assert not page.get("results").is_displayed()
    page.ask("Hello")
    assert page.get("error").text == ""
    assert page.get("results").is_displayed()


@pytest.mark.parametrize(("wait", "told"), [("1", "in 1 second."), ("30", "in 30 seconds.")])
def test_a_busy_server_tells_how_long_to_wait(browser: Any, stub: Stub, wait: str, told: str) -> None:
    page = Page(browser, stub.url)
    stub.refusal = (503, {"detail": "too much is waiting"}, {"Retry-After": wait})
    page.ask("Hello")
    stub.refusal = None
    assert page.get("error").text == f"too much is waiting. Try again {told}"


def test_a_server_that_is_gone_is_told(browser: Any) -> None:
    with stubbed([LABEL], written) as stub:
        page = Page(browser, stub.url)
    page.ask("Hello")
    assert page.get("error").text.startswith("The server does not answer.")


def test_a_newer_request_takes_the_place_of_an_older(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    go_on = threading.Event()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if body["texts"] == "slow":
            assert go_on.wait(30)
        return {"topic": {"label": body["texts"], "score": 1.0}}

    with stubbed([LABEL], answer) as stub:
        page = Page(browser, stub.url)
        page.fill("slow")
        page.get("send").click()
        assert not page.get("send").is_enabled()
        assert page.get("results").get_attribute("aria-busy") == "true"
        page.fill("fast")
        page.get("text").send_keys(Keys.CONTROL, Keys.ENTER)
        page.wait()
        go_on.set()
        page.js("return new Promise((done) => setTimeout(done, 200))")
        assert page.texts(".chosen") == ["fast"]
        assert page.get("error").text == ""
        assert page.get("results").get_attribute("aria-busy") == "false"


def test_a_token_is_asked_for_and_kept_in_memory_only(browser: Any) -> None:
    with serving(token="open-sesame") as served:
        page = Page(browser, served.url)
        assert page.get("token").is_displayed()
        assert page.get("token").get_attribute("type") == "password"
        page.get("token").send_keys("wrong\n")
        page.wait()
        assert page.get("error").text
        assert page.get("token").is_displayed()
        page.get("token").send_keys("open-sesame\n")
        page.wait()
        assert not page.get("token").is_displayed()
        assert page.get("error").text == ""
        page.ask("it's Oslo")
        command = page.open("curl")
        assert '-H "Authorization: Bearer $TOKEN"' in command
        assert "sesame" not in command
        if shutil.which("curl"):
            given = {"input": command.encode(), "env": {"TOKEN": "open-sesame"}, "capture_output": True}
            said = subprocess.run([shutil.which("sh"), "-s"], check=True, timeout=60, **given).stdout
            assert json.loads(said) == json.loads(page.open("json"))
        kept = page.js(
            "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        )
        assert "sesame" not in kept
        browser.refresh()
        page.wait()
        assert page.get("token").is_displayed()
