from pathlib import Path
from typing import Any

import pytest
from loaded import ROWS, load, problem, values
from tiny import write_jsonl


def test_columns_that_nobody_reads_may_differ_between_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x", "id": 1}])
    write_jsonl(tmp_path / "b.jsonl", [{"id": "two", "more": [], "label": "y", "text": "b"}])
    assert values(load(tmp_path, data_files=["a.jsonl", "b.jsonl"]), "label") == ["x", "y"]
    loaded = load(tmp_path, data_files={"train": "a.jsonl", "test": "b.jsonl"})
    assert values(loaded, "label", "test") == ["y"]


@pytest.mark.parametrize(
    ("nothing", "label"), [(None, "x"), (None, 3), (None, ["x"]), ([], ["x"]), ([None], [1]), (None, [])]
)
def test_a_file_without_a_single_label_goes_with_one_that_has_them(tmp_path: Path, nothing: Any, label: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": nothing}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "label": label}])
    for files in (["a.jsonl", "b.jsonl"], ["b.jsonl", "a.jsonl"]):
        loaded = load(tmp_path, data_files={"train": files[0], "test": files[1]})
        found = values(loaded, "label") + values(loaded, "label", "test")
        assert found == ([nothing, label] if files[0] == "a.jsonl" else [label, nothing])


def test_labels_that_are_text_here_and_numbers_there_are_told_with_both_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "label": 1}])
    message = problem(tmp_path, data_files={"train": "a.jsonl", "test": "b.jsonl"})
    assert "`label` holds values of type string in" in message
    assert "a.jsonl, but values of type int64 in" in message
    assert message.endswith("b.jsonl")


def test_a_label_column_that_one_file_lacks_is_told_with_the_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", [{"text": "a"}])
    message = problem(tmp_path, data_files={"train": "a.jsonl", "test": "b.jsonl"})
    assert f"split test ({tmp_path / 'b.jsonl'}): there is no column `label`" in message
    assert "splits: {test: null}" in message
    load(tmp_path, data_files={"train": "a.jsonl", "test": "b.jsonl"}, splits={"test": None})


# Bad input


def test_a_missing_column_is_told_with_those_that_exist_and_the_likely_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"sentence": "a", "labels": "x"}])
    message = problem(tmp_path, data_files="a.jsonl", text="sentences")
    assert "no column `sentences`; it has `sentence`, `labels`. Did you mean `sentence`?" in message
    assert "Did you mean `labels`?" in problem(tmp_path, data_files="a.jsonl", text="sentence")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "holds values of type int64"),
        (1.5, "holds values of type float64"),
        (["a"], "use `tokens: text`"),
        ({"en": "a"}, "should hold text"),
        (True, "holds values of type bool"),
    ],
)
def test_a_text_column_without_texts_is_told(tmp_path: Path, value: Any, expected: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": value, "label": "x", "title": "t"}])
    message = problem(tmp_path, data_files="a.jsonl")
    assert expected in message
    assert "`tokens: text`" in message or "Columns of text: `label`, `title`" in message


def test_words_where_there_are_texts_or_numbers_are_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "numbers": [1, 2], "label": "x"}])
    assert "use `text: text`" in problem(tmp_path, data_files="a.jsonl", text=None, tokens="text")
    assert "should hold text" in problem(tmp_path, data_files="a.jsonl", text=None, tokens="numbers")
