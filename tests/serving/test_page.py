"""The page in Chromium: against the server, and against one with written answers where a certain answer is wanted."""

import json
import shutil
import subprocess
from typing import Any

import pytest
from browser import Page, Stub, stubbed
from page_answers import LABEL, SPANS, TEXT, WORDS, found, written
from serving_thread import Served

pytestmark = pytest.mark.slow


def console(page: Page) -> list[str]:
    return [entry["message"] for entry in page.browser.get_log("browser")]


def test_each_answer_of_the_server_is_shown_where_it_belongs(browser: Any, served: Served) -> None:
    page = Page(browser, served.url)
    page.ask(TEXT)
    answers = served.post(texts=TEXT, all_scores=True).json()["predictions"]
    by_kind = {
        task["answer"]: task["name"] for task in served.client.get("/tasks").json()["tasks"] if not task["pairs"]
    }
    assert len(by_kind) == 5
    for kind, css in {"spans": "mark", "words": ".word"}.items():
        expected = [(one["text"], one["start"], one["end"]) for one in answers[by_kind[kind]]]
        assert expected
        assert page.shown(css) == expected
    assert page.texts("mark .kind") == [f"{one['label']} {one['score']:.3f}" for one in answers[by_kind["spans"]]]
    labels = page.js("return Array.from(document.querySelectorAll('.word'), (one) => one.dataset.label)")
    assert labels == [one["label"] for one in answers[by_kind["words"]]]
    shown = dict(zip(page.texts(".card h2"), page.texts(".card .chosen"), strict=True))
    assert shown[by_kind["label"]] == answers[by_kind["label"]]["label"]
    held = [one["label"] for one in answers[by_kind["labels"]] if one["holds"]]
    assert shown[by_kind["labels"]] == (", ".join(held) or "no label holds")
    assert shown[by_kind["value"]] == f"{answers[by_kind['value']]['value']:.3f}"


def test_entities_behind_emoji_and_whitespace_are_marked_at_their_characters(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    page.ask(TEXT)
    assert page.shown("mark") == [("Oslo", TEXT.index("Oslo"), TEXT.index("Oslo") + 4)]
    assert page.js("return getComputedStyle(document.querySelector('.text')).whiteSpace") == "pre-wrap"
    copied = page.js(
        "const all = document.querySelector('.text').cloneNode(true);"
        "all.querySelectorAll('.kind').forEach((kind) => kind.remove()); return all.textContent"
    )
    assert copied == TEXT


def test_words_and_spans_that_end_at_different_places_lose_no_character(browser: Any) -> None:
    text = "New York-based, Oslo"

    def crossing(_: dict[str, Any]) -> dict[str, Any]:
        return {
            "ner": [found(text, "New York", "LOC"), found(text, "Oslo", "LOC")],
            "pos": [found(text, word, "N") for word in ("New", "York-based", ",", "Oslo")],
        }

    with stubbed([SPANS, WORDS], crossing) as stub:
        page = Page(browser, stub.url)
        page.ask(text)
        assert [one[0] for one in page.shown("mark")] == ["New York", "Oslo"]
        assert [one[0] for one in page.shown(".word")] == ["New", "York", "-based", ",", "Oslo"]


def test_html_from_people_or_models_is_shown_as_text_and_nothing_runs(browser: Any) -> None:
    html = "<img src=x onerror=window.ran=1><script>window.ran=1</script></textarea>"
    name = {key: html if key == "name" else value for key, value in LABEL.items()}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        whole = {"text": html, "label": html, "start": 0, "end": len(html), "score": 1.0, "scores": {html: 1.0}}
        return {"ner": [whole], "pos": [whole], html: {"label": html, "score": 1.0, "scores": {html: 1.0}}}

    with stubbed([SPANS, WORDS, name], answer, model=html) as stub:
        page = Page(browser, stub.url)
        page.ask(html)
        page.open("json"), page.open("curl")
        assert page.shown("mark") == [(html, 0, len(html))]
        assert page.get("model").text == html
        assert page.texts(".card h2, .chosen") == [html, html]
        assert page.js("return [window.ran, document.querySelector('body img, body script')]") == [None, None]
        stub.refusal = (400, {"detail": html}, {})
        page.ask(html)
        assert page.get("error").text == html
        assert page.js("return [window.ran, document.querySelector('body img, body script')]") == [None, None]
        assert not [message for message in console(page) if "Security Policy" in message]


def test_only_ticked_tasks_are_asked_and_shown(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    page.tick("pos", "stars")
    page.ask("Hello Oslo")
    assert stub.asked[-1] == {"texts": "Hello Oslo", "tasks": ["pos", "stars"], "all_scores": True}
    assert page.texts("#results h2") == ["pos", "stars"]
    page.tick("stars", "topic")
    assert page.texts("#results h2") == ["stars"]
    assert "ticked now" in page.get("status").text
    asked = len(stub.asked)
    page.tick()
    page.get("send").click()
    assert "No task is ticked" in page.get("error").text
    assert len(stub.asked) == asked


def test_a_second_text_asks_the_tasks_of_pairs(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    names = lambda: [one.text.split()[0] for one in page.all(".choices label") if one.is_displayed()]  # noqa: E731
    assert names() == ["ner", "pos", "topic", "tags", "stars"]
    page.fill("and another", "second")
    assert names() == ["same"]
    page.ask("One text")
    assert stub.asked[-1] == {"texts": "One text", "text_pair": "and another", "tasks": ["same"], "all_scores": True}
    assert page.texts("#results h2, .chosen") == ["same", "b"]


def test_scores_are_bars_with_what_was_chosen_marked(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    page.tick("topic", "tags")
    page.ask("Hello")
    assert page.texts(".card:first-child li") == ["a (chosen)0.750", "b0.250"]
    assert page.texts(".card:last-child li") == ["x (chosen)0.900", "y0.200"]
    widths = page.js(
        "return Array.from(document.querySelectorAll('.bar'), (one) => one.offsetWidth / one.parentNode.offsetWidth)"
    )
    assert widths == pytest.approx([0.75, 0.25, 0.9, 0.2], abs=0.02)


def test_a_model_of_many_labels_shows_the_best_and_unfolds_the_rest(browser: Any) -> None:
    labels = [f"label {number}" for number in range(150)]
    scores = dict.fromkeys(labels, 1 / 150)
    task = {**LABEL, "labels": labels}
    with stubbed([task], lambda _: {"topic": {"label": labels[0], "score": 1 / 150, "scores": scores}}) as stub:
        page = Page(browser, stub.url)
        page.ask("Hello")
        assert len([one for one in page.all(".bars li") if one.is_displayed()]) == 8
        assert page.texts(".card summary") == ["142 more"]


def test_texts_without_words_have_answers_too(browser: Any, served: Served) -> None:
    page = Page(browser, served.url)
    page.ask("\u200b")
    answers = served.post(texts="\u200b", all_scores=True).json()["predictions"]
    assert json.loads(page.open("json"))["predictions"] == answers
    assert "There is no word." in page.texts(".detail") or page.shown(".word")


def test_an_empty_text_is_told_and_not_sent(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    asked = len(stub.asked)
    page.ask(" \n ")
    assert page.get("error").text == "There is no text. Type or paste one first."
    assert len(stub.asked) == asked


def test_the_json_is_what_the_server_says(browser: Any, served: Served) -> None:
    page = Page(browser, served.url)
    page.ask(TEXT)
    names = [task["name"] for task in served.client.get("/tasks").json()["tasks"] if not task["pairs"]]
    assert json.loads(page.open("json")) == served.post(texts=TEXT, tasks=names, all_scores=True).json()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is missing")
@pytest.mark.parametrize(
    "text",
    [TEXT, """it's '"$HOME" `id` \\n \\' !! %s\n'\n'END'\nEND\n@x\x85 \u2028 \x1b[0m""", ("🚋" * 50 + " ") * 700],
    ids=["plain", "hostile", "long"],
)
def test_the_curl_command_prints_the_same_json(browser: Any, served: Served, text: str) -> None:
    page = Page(browser, served.url)
    page.tick("pos", "sentiment")
    page.get("all-scores").click()
    page.ask(text)
    command = page.open("curl")
    said = subprocess.run(["sh"], input=command.encode(), capture_output=True, check=True, timeout=60).stdout
    assert (
        json.loads(said) == served.post(texts=page.get("text").get_property("value"), tasks=["pos", "sentiment"]).json()
    )
    assert "\x85" not in command


def test_copy_takes_what_is_shown(browser: Any, stub: Stub) -> None:
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page = Page(browser, stub.url)
    page.ask("Hello Oslo")
    for id in ("json", "curl"):
        shown = page.open(id)
        page.all(f"#{id} button")[0].click()
        assert page.js("return navigator.clipboard.readText()") == shown
        assert page.get("status").text == "Copied."


def test_copy_works_without_the_clipboard_of_secure_pages(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    page.ask("Hello Oslo")
    page.js("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.js("document.addEventListener('copy', () => { window.copied = document.activeElement.value })")
    shown = page.open("curl")
    page.all("#curl button")[0].click()
    assert page.js("return window.copied") == shown


def test_the_keyboard_alone_is_enough(browser: Any, stub: Stub) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, stub.url)
    focused = lambda: page.js("return document.activeElement.id || document.activeElement.className")  # noqa: E731

    def press(*keys: str) -> None:
        browser.switch_to.active_element.send_keys(*keys)

    press(Keys.TAB)
    assert focused() == "text"
    press("Hello Oslo")
    press(Keys.CONTROL, Keys.ENTER)
    page.wait()
    assert page.get("status").get_attribute("role") == "status"
    told = page.get("status").text
    assert told.endswith("ner: 1 span; pos: 2 words; topic: a; tags: x; stars: 3.417.")
    page.get("send").send_keys(Keys.SPACE)
    page.wait()
    assert focused() == "send"
    page.get("text").click()
    passed = []
    for _ in range(12):
        press(Keys.TAB)
        passed.append(focused())
        assert page.js("return document.activeElement.matches(':focus-visible')")
    assert passed[0] == "second"
    assert passed[6:9] == ["send", "all-scores", "item word"]
    page.all("[tabindex='0'].item")[0].send_keys(Keys.ARROW_RIGHT)
    assert focused() == "item span"
    assert page.texts(".detail")[0] == "Oslo: LOC 0.988 (B-LOC 0.900, O 0.100)"
    press(Keys.ARROW_RIGHT)
    assert page.texts(".detail")[0] == "Oslo: N 0.988 · Oslo: LOC 0.988 (B-LOC 0.900, O 0.100)"
    press(Keys.HOME)
    assert page.js("return document.activeElement.textContent") == "Hello"


def test_every_field_has_a_name_for_screen_readers(browser: Any, stub: Stub) -> None:
    page = Page(browser, stub.url)
    page.ask("Hello Oslo")
    fields = [*page.all("textarea, input[type=checkbox], button, .text, pre, summary, a")]
    assert len(fields) > 10
    assert [one.get_attribute("outerHTML") for one in fields if one.is_displayed() and not one.accessible_name] == []


def test_it_works_behind_a_proxy_under_a_prefix(browser: Any) -> None:
    with stubbed([LABEL], written, prefix="/models/demo") as stub:
        page = Page(browser, stub.url)
        page.ask("Hello")
        assert page.texts(".chosen") == ["a"]
        assert f"'{stub.url}predict'" in page.open("curl")
        assert browser.current_url == stub.url


def test_nothing_is_asked_of_others_and_the_console_stays_empty(browser: Any, served: Served) -> None:
    page = Page(browser, served.url)
    page.ask(TEXT)
    page.open("json"), page.open("curl")
    page.tick("pos")
    asked = page.js("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked
    assert [one for one in asked if not one.startswith(served.url)] == []
    assert console(page) == []
    assert browser.title == f"{served.settings.name}: predictions"
    assert browser.current_url.rstrip("/") == served.url.rstrip("/")
