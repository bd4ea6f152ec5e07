"""Training rows that are left out, and what is told of them."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loaded import load, problem, values
from tiny import write_jsonl

from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.data import row_filter
from nlp_mtl.data.row_filter import REASONS, Row, RowFilter, rows_of
from nlp_mtl.errors import MissingExtraError

LONG = "The quick brown fox jumps over the lazy dog near the river bank at noon"


def rows(texts: list[str]) -> list[Row]:
    return list(rows_of([(text,) for text in texts], str.split))


def reasons(row_filter: RowFilter, train: list[str], evaluated: list[str] | None = None) -> list[str]:
    found = row_filter.left_out(rows(train), rows(evaluated or []))
    return [REASONS[why] for why in found.why]


def test_rows_that_are_too_short_or_too_long_are_left_out() -> None:
    found = reasons(RowFilter(min_words=2, max_words=3), ["a", "a b", "a b c", "a b c d", ""])
    assert found == ["min_words", "kept", "kept", "max_words", "min_words"]


def test_of_equal_texts_the_first_stays_and_none_that_is_evaluated_on() -> None:
    found = RowFilter("exact").left_out(rows(["a b", "c", "a  b", "d", "c", ""]), rows(["d", ""]))
    assert [REASONS[why] for why in found.why] == ["kept", "kept", "exact", "exact", "exact", "kept"]
    assert found.same_as.tolist() == [-1, -1, 0, -1, 1, -1]


def test_near_duplicates_are_those_of_a_similarity() -> None:
    pytest.importorskip("datasketch")
    texts = [LONG, LONG.replace("noon", "dusk"), LONG.upper(), "Something else altogether, and just as long as that"]
    assert reasons(RowFilter("near"), texts) == ["kept", "near", "near", "kept"]
    assert reasons(RowFilter("near", 0.99), texts) == ["kept", "kept", "near", "kept"]
    assert reasons(RowFilter("exact"), texts) == ["kept"] * 4
    assert reasons(RowFilter("near"), texts, [LONG]) == ["exact", "near", "near", "kept"]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9])
def test_pairs_just_above_the_threshold_are_found(threshold: float) -> None:
    pytest.importorskip("datasketch")
    draw = random.Random(0)
    pairs: list[str] = []
    while len(pairs) < 400:
        letters = draw.choices("abcdefghijklmnop", k=200)
        text, wrong = "".join(letters), draw.sample(range(200), k=draw.randint(1, 30))
        other = "".join("z" if place in wrong else letter for place, letter in enumerate(letters))
        first, second = ({one[n : n + 5] for n in range(len(one) - 4)} for one in (text, other))
        if threshold <= len(first & second) / len(first | second) < threshold + 0.03:
            pairs += [text, other]
    assert reasons(RowFilter("near", threshold), pairs).count("near") >= 0.95 * 200


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a b c d e", "a b c d f", "x y", "x  y", "X y", "", "z"]), max_size=12))
def test_no_two_texts_that_stay_are_near_and_every_one_that_goes_is_near_one_that_stays(texts: list[str]) -> None:
    pytest.importorskip("datasketch")

    def similarity(one: str, other: str) -> float:
        joined = [" ".join(text.split()).casefold() for text in (one, other)]
        first, second = ({text[n : n + 5] for n in range(max(1, len(text) - 4))} for text in joined)
        return len(first & second) / len(first | second)

    found = RowFilter("near", 0.8).left_out(rows(texts), [])
    kept = [place for place in range(len(texts)) if not found.why[place]]
    for place, text in enumerate(texts):
        if found.why[place]:
            assert found.same_as[place] in kept
            assert similarity(text, texts[found.same_as[place]]) >= 0.8
        elif text.split():
            assert all(similarity(text, texts[other]) < 0.8 for other in kept if other < place and texts[other].split())


def test_both_texts_of_a_pair_count() -> None:
    pairs = [("a", "b c"), ("a b", "c"), ("a", "b c")]
    found = RowFilter("exact", max_words=3).left_out(rows_of(pairs, str.split), [])
    assert [REASONS[why] for why in found.why] == ["kept", "kept", "exact"]


# ---- of files


def corpus(folder: Path) -> Path:
    train = [{"text": f"text number {n} of this file", "label": "ab"[n % 2]} for n in range(40)]
    train[7] = {"text": "<b>text</b> number  3 of this file", "label": "a"}  # that of row 3, but for its label
    train[9] = {"text": "short", "label": "b"}
    train[11] = {"text": "the one that is tested", "label": "b"}
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "test.jsonl", [{"text": "the one that is tested", "label": "a"}] * 2)
    return folder


def filtered(folder: Path, **options: Any) -> Any:
    given: dict[str, Any] = {
        "data_files": {"train": "train.jsonl", "test": "test.jsonl"},
        "cleaning": Cleaning(remove_html=True),
        "row_filter": RowFilter("exact", min_words=2),
    }
    if not (folder / "train.jsonl").exists():
        corpus(folder)
    return load(folder, **{**given, **options})


def test_rows_are_compared_as_they_are_cleaned_and_what_was_left_out_is_told(tmp_path: Path) -> None:
    loaded = filtered(tmp_path)
    assert len(loaded.splits["train"].rows) == 37
    assert len(loaded.splits["test"].rows) == 2  # what is evaluated on stays as it is
    assert (
        loaded.splits["train"].where(7)
        == f"dataset `demo`, split train, row 8 of {tmp_path}/train.jsonl (counted from 0)"
    )
    (note,) = loaded.notes
    assert note == (
        "demo: 3 of 40 train rows are left out (cleaning): 1 of fewer than 2 words, 1 the same as an earlier row, 1 "
        "the same as a row that is evaluated on; 1 of them with other labels than the row that stays"
    )


def test_rows_are_held_out_of_those_that_stay_and_then_limited(tmp_path: Path) -> None:
    loaded = filtered(tmp_path, validation_fraction=0.2, max_rows={"train": 10})
    held_out = set(values(loaded, "text", "validation"))
    assert len(held_out) == round(37 * 0.2)
    assert len(values(loaded, "text")) == 10
    assert not held_out & set(values(loaded, "text"))
    assert "short" not in held_out


def test_what_was_found_is_kept_for_the_next_time_and_found_anew_where_anything_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filtered(tmp_path)

    def refused(*_: object) -> None:
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(row_filter.RowFilter, "left_out", refused)
        again = filtered(tmp_path)
        assert again.notes == first.notes
        assert np.array_equal(again.splits["train"].source_rows, first.splits["train"].source_rows)
        for options in ({"row_filter": RowFilter("exact")}, {"cleaning": Cleaning()}, {"word_splitter": "whitespace"}):
            with pytest.raises(AssertionError, match="looked again"):
                filtered(tmp_path, **options)
    rows = (tmp_path / "test.jsonl").read_text()
    (tmp_path / "other").mkdir()
    corpus(tmp_path / "other")
    (tmp_path / "other" / "test.jsonl").write_text(rows.replace("the one that", "another that"))
    assert len(load(tmp_path / "other", data_files={"train": "train.jsonl", "test": "test.jsonl"},
                    row_filter=RowFilter("exact", min_words=2)).splits["train"].rows) == 39  # fmt: skip


def test_a_filter_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    corpus(tmp_path)
    told = problem(tmp_path, data_files={"train": "train.jsonl"}, row_filter=RowFilter(min_words=50))
    assert "40 of 40 train rows are left out (cleaning): 40 of fewer than 50 words, which leaves none" in told


def test_words_of_lists_are_cleaned_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"tokens": tokens, "label": "a"}) + "\n" for tokens in (["A", "b"], ["a", "B"], [None, "c"]))
    )
    loaded = load(tmp_path, data_files="train.jsonl", text=None, tokens="tokens", cleaning=Cleaning(lowercase=True),
                  row_filter=RowFilter("exact"))  # fmt: skip
    assert values(loaded, "tokens") == [["A", "b"], [None, "c"]]


def test_without_datasketch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match=r"drop_duplicates: near.*nlp_mtl\[cleaning\]"):
        reasons(RowFilter("near"), ["a"])
