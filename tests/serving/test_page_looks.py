"""How the page looks in Chromium: on phones, in the dark, from right to left, with long texts."""

from itertools import pairwise
from typing import Any

import pytest
from browser import Page, Stub, stubbed
from page_answers import LABEL, LABELS, SPANS, TEXT, VALUE, WORDS, found, written

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [320, 360, 390])
def test_phones_need_not_scroll_sideways(browser: Any, stub: Stub, width: int) -> None:
    page = Page(browser, stub.url)
    page.width(width)
    try:
        page.ask(f"Oslo {'x' * 300} https://example.org/{'a-' * 200} {TEXT}")
        page.open("json"), page.open("curl")
        assert page.js("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    finally:
        page.emulate("clearDeviceMetricsOverride")


CONTRASTS = """
const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const luminance = (color) => {
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const parts = Array.from(pen.getImageData(0, 0, 1, 1).data.slice(0, 3), (part) => part / 255);
    const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        if (!/, 0\\)$|transparent/.test(color)) return color;
    }
};
const contrast = (one, color, on) => {
    const [less, more] = [luminance(color), luminance(on)].sort((a, b) => a - b);
    return [one.className || one.tagName, (more + 0.05) / (less + 0.05)];
};
const all = Array.from(document.querySelectorAll('body *')).filter((one) =>
    one.offsetParent && Array.from(one.childNodes).some((node) => node.nodeType === 3 && node.data.trim()));
const words = Array.from(document.querySelectorAll('.word'));
return [...all.map((one) => contrast(one, getComputedStyle(one).color, ground(one))),
        ...words.map((one) => contrast(one, getComputedStyle(one, '::after').color, ground(one)))];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_dark(browser: Any, scheme: str) -> None:
    words = [f"w{number}" for number in range(60)]
    text = " ".join(words)
    kinds = [f"kind{number}" for number in range(60)]
    more = {task: [found(text, w, kind) for w, kind in zip(words, kinds, strict=True)] for task in ("ner", "pos")}
    tasks = [{**SPANS, "labels": kinds}, {**WORDS, "labels": kinds}, LABEL, LABELS, VALUE]
    with stubbed(tasks, lambda body: {**written(body), **more}) as stub:
        page = Page(browser, stub.url)
        page.scheme(scheme)
        try:
            page.ask(text)
            page.open("json"), page.open("curl")
            page.js("document.getElementById('error').textContent = 'wrong'")
            page.js("return Promise.all(document.getAnimations().map((one) => one.finished.catch(() => 0)))")
            background = page.js("return getComputedStyle(document.body).backgroundColor")
            brightness = sum(int(part) for part in background.strip("rgb()").split(","))
            assert (brightness < 150) == (scheme == "dark")
            contrasts = page.js(CONTRASTS)
            assert len(contrasts) > 180
            assert min(contrasts, key=lambda one: one[1])[1] >= 4.5, min(contrasts, key=lambda one: one[1])
            hues = page.js(
                "return Array.from(document.querySelectorAll('mark'), (one) => one.style.getPropertyValue('--hue'))"
            )
            assert len(set(hues)) == 60
        finally:
            page.scheme("")


@pytest.mark.parametrize("span", ["Siemens Mobility GmbH", "Siemens Mobility", "ميركل"])
def test_text_from_right_to_left_is_set_so_and_words_keep_their_order(browser: Any, span: str) -> None:
    text = "افتتحت ميركل Siemens Mobility GmbH اليوم."
    words = ["افتتحت", "ميركل", "Siemens", "Mobility", "GmbH", "اليوم", "."]
    answers = {"ner": [found(text, span, "PER")], "pos": [found(text, word, "N") for word in words]}
    with stubbed([SPANS, WORDS], lambda _: answers) as stub:
        page = Page(browser, stub.url)
        page.ask(text)
        assert page.js("return getComputedStyle(document.querySelector('.text')).direction") == "rtl"
        places = page.js(
            "return Array.from(document.querySelectorAll('.word'), (one) => one.getBoundingClientRect().toJSON())"
        )
        from_right = sorted(range(7), key=lambda number: -places[number]["left"])
        assert [words[number] for number in from_right] == [*words[:2], *reversed(words[2:5]), *words[5:]]
        for one, other in pairwise(from_right):  # each label at its word
            assert places[other]["right"] <= places[one]["left"] + 1
        last = places[words.index(span.split()[-1])]
        kind = page.js("return document.querySelector('.kind').getBoundingClientRect().toJSON()")
        assert min(abs(kind["left"] - last["right"]), abs(kind["right"] - last["left"])) < 15


LAST_SIGN_TO_KIND = """
const walker = document.createTreeWalker(document.querySelector('mark'), NodeFilter.SHOW_TEXT);
while (!walker.nextNode().data.endsWith('京'));
const range = document.createRange();
range.setStart(walker.currentNode, walker.currentNode.length - 1);
range.setEnd(walker.currentNode, walker.currentNode.length);
return document.querySelector('.kind').getBoundingClientRect().top - range.getBoundingClientRect().top;
"""


def test_a_line_does_not_break_between_a_span_and_its_kind(browser: Any) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"ner": [found(body["texts"], "東京", "LOC")], "pos": [found(body["texts"], "東京", "N")]}

    with stubbed([SPANS, WORDS], answer) as stub:
        page = Page(browser, stub.url)
        page.width(360)
        try:
            for tasks in (["ner"], ["ner", "pos"]):
                page.tick(*tasks)
                for length in range(34, 76, 4):
                    page.ask("i" * length + " 東京")
                    assert abs(page.js(LAST_SIGN_TO_KIND)) < 20
        finally:
            page.emulate("clearDeviceMetricsOverride")


def test_a_text_of_a_hundred_thousand_characters_is_usable(browser: Any) -> None:
    text = " ".join(f"word{number}" for number in range(11_000))[:100_000]
    ends = [at for at, sign in enumerate(text) if sign == " "] + [len(text)]
    places = list(pairwise([-1, *ends]))
    entries = [{"text": text[a + 1 : b], "label": "N", "start": a + 1, "end": b, "score": 0.5} for a, b in places]
    with stubbed([SPANS, WORDS], lambda _: {"ner": entries[::5], "pos": entries}) as stub:
        page = Page(browser, stub.url)
        page.ask(text)
        page.js("return document.body.offsetHeight")
        assert len(page.texts(".word")) == len(entries)
