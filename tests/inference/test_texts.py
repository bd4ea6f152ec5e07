"""Streams of texts: in order, a bounded number at a time; and the scores of all labels."""

import logging
import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from pair_values import SAME
from stock_models import rounded, tiny_model
from tiny import tokenizer

from nlp_mtl import ModelError
from nlp_mtl.inference import texts
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.texts import as_json
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task

PREDICTOR = Predictor(tiny_model(), tokenizer())
TEXTS = ["anna loves rome .", "", "bob", "the good film of acme " * 9, " \t\n", "uning teas ! ?"] * 3


class Asked:
    """Texts that count how many of them were asked for."""

    def __init__(self, values: list[Any]) -> None:
        self.values, self.count = values, 0

    def __iter__(self) -> Iterator[Any]:
        for value in self.values:
            self.count += 1
            yield value


@pytest.mark.parametrize("limits", [(1, 10**6), (4, 10**6), (1000, 20)])
def test_a_stream_gives_the_answers_of_a_call_whatever_is_answered_together(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = PREDICTOR(TEXTS)
    monkeypatch.setattr(texts, "TEXTS_AT_ONCE", limits[0])
    monkeypatch.setattr(texts, "CHARACTERS_AT_ONCE", limits[1])
    assert rounded(list(PREDICTOR.stream(iter(TEXTS)))) == rounded(expected)
    assert rounded(PREDICTOR(TEXTS)) == rounded(expected)


def test_a_stream_asks_for_no_more_texts_than_it_answers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "TEXTS_AT_ONCE", 4)
    given = Asked(TEXTS)
    answers = PREDICTOR.stream(given)
    assert given.count == 0
    for number, _ in enumerate(answers, start=1):
        assert given.count <= 4 * -(-number // 4)


def test_a_long_text_and_a_list_of_many_words_are_answered_without_waiting_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(texts, "CHARACTERS_AT_ONCE", 50)
    for long in ("anna loves rome . " * 4, ["anna"] * 20):
        given = Asked([long, *TEXTS])
        next(PREDICTOR.stream(given))
        assert given.count == 1


def failing() -> Iterator[str]:
    yield from ("bob", "bob", "bob")
    raise OSError("the line is dead")


@pytest.mark.parametrize("limit", [2, 100])
def test_what_is_wrong_with_a_text_is_told_behind_the_answers_of_those_before_it(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "TEXTS_AT_ONCE", limit)
    three = PREDICTOR(["bob", "bob", "bob"])
    for given, error, told in (
        (["bob", "bob", "bob", 7], TypeError, "text 3 should be a string or a list of words, but it is 7"),
        (["bob", "bob", "bob", ["x", 7]], TypeError, "text 3 should be a string or a list of words, but it is"),
        (failing(), OSError, "the line is dead"),
    ):
        answers = PREDICTOR.stream(given)  # type: ignore[arg-type]
        assert [next(answers) for _ in range(3)] == three
        with pytest.raises(error, match=told):
            next(answers)


def test_streams_of_what_are_no_texts_are_refused_at_once() -> None:
    for wrong, error in (("bob", TypeError), (3, TypeError)):
        with pytest.raises(error):
            PREDICTOR.stream(wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError):
        PREDICTOR.stream(["bob"], tasks=["nothing"])


def test_pairs_stream_and_cut_ones_are_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nlp = Predictor(tiny_model(tasks=[SAME]), tokenizer())
    monkeypatch.setattr(texts, "TEXTS_AT_ONCE", 2)
    firsts, seconds = ["anna loves rome", "bob", "bob " * 40], ["bob", "anna", "rome " * 40]
    with caplog.at_level(logging.WARNING):
        found = list(nlp.stream(iter(firsts), text_pair=iter(seconds)))
    assert len(found) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 3 pairs of texts are longer than {nlp.model.config.max_length} tokens: the longer text of each was cut"
    ]
    for one, other in ((firsts, seconds[:2]), (firsts[:2], seconds)):
        with pytest.raises(ValueError, match="each needs one"):
            list(nlp.stream(iter(one), text_pair=iter(other)))


def test_a_pair_alone_that_was_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    nlp = Predictor(tiny_model(tasks=[SAME]), tokenizer())
    with caplog.at_level(logging.WARNING):
        nlp("bob " * 40, text_pair="rome " * 40)
    assert caplog.messages == [
        f"1 of 1 pairs of texts are longer than {nlp.model.config.max_length} tokens: the longer text of each was cut"
    ]


def test_a_budget_below_what_the_model_reads_is_kept_and_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = MultiTaskModel.forward

    def counted(self: Any, input_ids: Any, *args: Any, **options: Any) -> Any:
        sizes.append(input_ids.numel())
        return forward(self, input_ids, *args, **options)

    monkeypatch.setattr(MultiTaskModel, "forward", counted)
    expected = rounded(PREDICTOR(TEXTS))
    most, longest = max(sizes), PREDICTOR.model.config.max_length
    for layout in ("padded", "packed"):
        sizes.clear()
        small = Predictor(tiny_model(), tokenizer(), max_tokens=longest // 2, layout=layout)
        assert rounded(small(TEXTS)) == expected
        assert max(sizes) <= longest < most  # a window of that length stands alone


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"a": math.nan, "b": [math.inf, 1.5, {"c": -math.inf}]}, '{"a": null, "b": [null, 1.5, {"c": null}]}'),
        ({"at": datetime(2026, 2, 3, 4, 5, tzinfo=timezone.utc)}, '{"at": "2026-02-03T04:05:00+00:00"}'),
        ({"on": date(2026, 2, 3), "at": time(4, 5)}, '{"on": "2026-02-03", "at": "04:05:00"}'),
        ({"for": timedelta(hours=1), "costs": Decimal("1.10")}, '{"for": "1:00:00", "costs": "1.10"}'),
        ({"bytes": b"\xff\x00"}, '{"bytes": "/wA="}'),
        ("\ud800", '"\\ud800"'),
    ],
)
def test_lines_of_json_are_json_whatever_a_column_holds(value: Any, line: str) -> None:
    assert as_json(value) == line


def test_of_several_labels_all_are_told_with_whether_they_hold_and_numbers_stay_numbers() -> None:
    tags = Task("tags", "multi-label-classification", ("a", "b", "c"), "micro_f1")
    rating = Task("rating", "regression", ("value",), "pearson")
    nlp = Predictor(tiny_model(tasks=[tags, rating]), tokenizer())
    for text in TEXTS[:4]:
        plain, answer = nlp(text), nlp(text, all_scores=True)
        assert answer["rating"] == plain["rating"]
        held = [{key: entry[key] for key in ("label", "score")} for entry in answer["tags"] if entry["holds"]]
        assert held == plain["tags"]
        assert sorted(entry["label"] for entry in answer["tags"]) == (["a", "b", "c"] if text else [])


def test_all_scores_are_the_probabilities_of_every_label() -> None:
    text = "anna loves rome ."
    plain, answer = PREDICTOR(text), PREDICTOR(text, all_scores=True)
    labels = {task.name: [*task.labels] for task in PREDICTOR.tasks}
    for task in ("pos", "ner"):
        assert [{**entry, "scores": None} for entry in plain[task]] == [
            {**entry, "scores": None} for entry in answer[task]
        ]
        for entry in answer[task]:
            assert [*entry["scores"]] == labels[task]
            assert sum(entry["scores"].values()) == pytest.approx(1, abs=1e-5)
    for entry in answer["pos"]:
        assert entry["score"] == entry["scores"][entry["label"]] == max(entry["scores"].values())
    mood = answer["sentiment"]
    assert mood["scores"][mood["label"]] == mood["score"] == max(mood["scores"].values())
    assert PREDICTOR("", all_scores=True)["sentiment"] == {"label": None, "score": None, "scores": None}
