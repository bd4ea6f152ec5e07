"""The report of a comparison: it needs nothing but itself, and what comes from data and recipes is text in it."""

import base64
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nlp_mtl import MissingExtraError
from nlp_mtl.analysis.comparison_page import page
from nlp_mtl.analysis.comparison_plots import draw_comparison

HOSTILE = '<script>alert("x")</script>&\'"<img src=x onerror=y>'


OURS = ("helped", "hurt", "no difference", "test")
"""Texts that are no user's."""


def of_task(difference: float, verdict: str) -> dict[str, Any]:
    return {
        "metric": "macro_f1", "split": "test", "rows": 1234, "joint": {"mean": 0.8, "sd": 0.01, "scores": [0.79, 0.81]},
        "alone": {"mean": 0.8 - difference, "sd": None, "scores": [0.7, 0.7]}, "difference": difference,
        "interval": [difference - 0.02, difference + 0.02], "resamples": 10000, "differences": [difference, difference],
        "verdict": verdict, "sentence": f"a task: {verdict}",
    }  # fmt: skip


def report() -> dict[str, Any]:
    gain = of_task(-0.05, "hurt")
    curve = {"0": [[0.5, 0.3], [1.0, 0.4]], "1": [[0.5, 0.2], [1.0, 0.5]]}
    over_time = {"0": [[1, {"ner": 1.0, "mood": 0.5}], [9, {"ner": 0.6, "mood": 0.9}]], "1": []}
    return {
        "name": "mine-compare", "seeds": [0, 1], "same_steps": False,
        "tasks": {"ner": of_task(0.1, "helped"), "mood": of_task(-0.05, "hurt")},
        "mean": of_task(0.025, "no difference"),
        "transfer": {"pairs": {"ner": {"mood": gain}, "mood": {"ner": of_task(0.001, "no difference")}},
                     "leave_one_out": {"ner": {"mood": gain}}},
        "conflicts": {"mean": {"ner/mood": -0.25}, "negative": {"ner/mood": 0.75},
                      "over_time": {"0": [[1, {"ner/mood": -0.5}], [5, {"ner/mood": 0.1}]]}},
        "conflicts_missing": "", "over_time": {"weights": over_time, "shares": over_time},
        "learning_curves": {"ner": {"joint": curve, "only-ner": curve}, "mood": {"joint": curve, "only-mood": curve}},
        "cost": {"parameters": {"joint": 10, "alone": 20}, "seconds": {"joint": 1.0, "alone": 2.5}, "ratio": 2.5,
                 "texts": 512, "pairs": 0, "device": "cpu", "training_tokens": {"joint": None, "alone": 12345}},
        "models": {"only-ner": {"tasks": ["ner"], "rows": 1000, "joint_rows": 1100,
                                "differences": [{"key": "a.b", "joint": 1, "here": None}],
                                "runs": [{"steps": 1000, "step": 900}]}},
        "versions": {"torch": "2"}, "command": "nlp-mtl compare x.yaml",
    }  # fmt: skip


class Reader(HTMLParser):
    """What a browser sees: elements that are closed in their order, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_tells_what_the_report_holds(tmp_path: Path) -> None:
    values = report()
    pictures = {path.name: path.read_bytes() for path in draw_comparison(values, tmp_path)}
    assert {*pictures} == {
        "differences.png", "learning_curves.png", "transfer_pairs.png", "transfer_leave_one_out.png", "conflicts.png",
        "conflicts_over_time.png", "weights_over_time.png", "shares_over_time.png",
    }  # fmt: skip
    html = page(values, pictures)
    found = Reader(html)
    images = [attributes["src"] or "" for tag, attributes in found.seen if tag == "img"]
    assert len(images) == len(pictures)
    assert {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in images} == {
        *pictures.values()
    }
    assert not {"script", "link", "iframe"} & {tag for tag, _ in found.seen}
    assert "://" not in html
    assert "prefers-color-scheme: dark" in html
    for text in ("a task: helped", "a task: hurt", "0.8000 ± 0.0100", "+0.0800 to +0.1200", "-0.2500", "75%", "12,345",
                 "2.50 times", "a.b: 1 → None", "900 of 1,000",
                 "1,000; jointly 1,100", "unknown (streamed)"):  # fmt: skip
        assert text in found.text, text


def hostile(value: Any) -> Any:
    """The same with every text, also of keys that name something of the user's, made hostile."""
    if isinstance(value, dict):
        ours = {*report(), *report()["cost"], *of_task(0, ""), "joint", "alone", "pairs", "leave_one_out", "mean", "sd",
                "scores", "negative", "over_time", "tasks", "differences", "runs", "key", "here", "steps", "step",
                "weights", "shares", "training_tokens", "rows", "joint_rows"}  # fmt: skip
        return {key if key in ours else f"{key}{HOSTILE}": hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) and value not in OURS else value


def test_what_comes_from_data_and_recipes_is_escaped() -> None:
    html = page(hostile(copy.deepcopy(report())), {})
    found = Reader(html)
    plain = Reader(page(report(), {}))
    assert [tag for tag, _ in found.seen] == [tag for tag, _ in plain.seen]
    assert not any(name.startswith("on") for _, attributes in found.seen for name in attributes)
    assert found.text.count(HOSTILE) > 20


def test_what_was_not_measured_is_told_or_left_out(tmp_path: Path) -> None:
    values = report()
    values |= {"conflicts": {}, "conflicts_missing": "it was not asked for", "over_time": {},
               "transfer": {"pairs": {}, "leave_one_out": {}}}  # fmt: skip
    values["learning_curves"] = {"ner": {"joint": {"0": [[1.0, 0.5]]}}}
    values["tasks"]["mood"]["split"] = "validation"
    drawn = draw_comparison(values, tmp_path)
    assert [path.name for path in drawn] == ["differences.png"]
    text = Reader(page(values, {})).text
    assert "Not measured: it was not asked for." in text
    assert "Leave one out" not in text
    assert re.search(r"mood: there is no labelled test split.*too good", text)


def test_pictures_are_pictures(tmp_path: Path) -> None:
    for path in draw_comparison(report(), tmp_path):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 20


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlp_mtl\[plots\]'"):
        draw_comparison(report(), tmp_path)
