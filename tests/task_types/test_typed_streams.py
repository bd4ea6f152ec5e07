"""Streams with several labels a text and with numbers."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
from typed_runs import TAGS, values

from nlp_mtl import DataError, Recipe, RecipeError, train
from nlp_mtl.build_data import prepare


def streamed_values(folder: Path) -> dict[str, Any]:
    given = values(folder, max_steps=4, eval_every=4)
    del given["datasets"]["words"], given["tasks"]["pos"]
    given["datasets"]["texts"] |= {"streaming": True, "buffer_size": 16}
    given["tasks"]["tags"]["label_names"] = list(TAGS)
    given["tasks"]["sentiment"]["label_names"] = ["negative", "positive"]
    given["sampling"] = {"strategy": "uniform"}
    return given


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("rating", "good", "task `rating`: {place} has 'good'; expected a number, or null where there is none"),
        ("tags", 3, "task `tags`: {place} has 3; expected a list of labels"),
        ("tags", [["good"]], "task `tags`: unknown label ['good'] in {place}; the label set is"),
        ("label", ["positive"], "task `sentiment`: unknown label ['positive'] in {place}; the label set is"),
    ],
)
def test_a_value_of_another_type_behind_the_first_rows_of_a_stream_is_told_with_its_line(
    tmp_path: Path, column: str, value: Any, told: str
) -> None:
    given = streamed_values(tmp_path)
    file = tmp_path / "corpus" / "texts" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tiny.write_jsonl(file, [*rows, *rows, *rows[:4], rows[4] | {column: value}])
    split = prepare(Recipe.from_dict(given)).streams["texts"]
    split.batch(range(64))
    with pytest.raises(DataError) as refused:
        split.batch(range(64, 101))
    place = f"dataset `texts`, split train (streamed), line 101 of {file}"
    assert told.format(place=place) in str(refused.value)


def test_several_labels_and_numbers_are_streamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = streamed_values(tmp_path)
    with caplog.at_level(logging.WARNING, "nlp_mtl"):
        results = train(Recipe.from_dict(given))
    assert {*results["scores"]["test"]} == {"sentiment", "tags", "rating"}
    assert not [record for record in caplog.records if record.name.startswith("nlp_mtl")]
    del given["tasks"]["tags"]["label_names"]
    with pytest.raises(RecipeError, match=r"tasks\.tags\.label_names: needed"):
        train(Recipe.from_dict({**given, "output_dir": str(tmp_path / "other")}))


def csv_values(folder: Path, form: str, numbers: list[str]) -> dict[str, Any]:
    """Streamed ratings of CSV or TSV, and a validation split."""
    given = streamed_values(folder)
    mark = "," if form == "csv" else "\t"
    for split, column in (("train", numbers), ("validation", ["1", "2.5", ""])):
        lines = [mark.join(("text", "rating")), *(mark.join((f"tea {n}", one)) for n, one in enumerate(column))]
        (folder / "corpus" / f"{split}.{form}").write_text("\n".join(lines) + "\n")
    given["datasets"]["texts"]["data_files"] = {split: f"{split}.{form}" for split in ("train", "validation")}
    given["tasks"] = {"rating": given["tasks"]["rating"]}
    return given


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize(
    "numbers",
    [["0.5", "-2", "", "+.25", "1e1", "7."], ["3", "4"] * 50 + ["2.5", "", "-1e-2"], [""] * 100 + ["2.5", "3"]],
    ids=["decimal", "whole at first", "none at first"],
)
def test_streamed_numbers_of_csv_are_those_of_the_same_file_unstreamed(
    tmp_path: Path, form: str, numbers: list[str]
) -> None:
    given = csv_values(tmp_path, form, numbers)
    split = prepare(Recipe.from_dict(given)).streams["texts"]
    found = split.batch(range(len(numbers)))["labels/rating"]
    given["datasets"]["texts"] = {**given["datasets"]["texts"], "streaming": False, "test_fraction": 0}
    del given["datasets"]["texts"]["buffer_size"]
    plain = prepare(Recipe.from_dict(given)).encoded["texts"]["train"].rows["labels/rating"]
    assert sorted(found) == sorted(plain) == sorted([float(one)] if one else [] for one in numbers)


@pytest.mark.parametrize("place", [1, 101])
@pytest.mark.parametrize("odd", ["2,5", "nan", "1_000", "high"])
def test_what_is_no_number_in_a_csv_stream_is_told_with_its_line(tmp_path: Path, place: int, odd: str) -> None:
    given = csv_values(tmp_path, "tsv", [*["3"] * place, odd])
    with pytest.raises(DataError) as refused:
        prepare(Recipe.from_dict(given)).streams["texts"].batch(range(place + 1))
    told = f"line {place + 2} of {tmp_path}/corpus/train.tsv: the column `rating` holds {odd!r}; expected a number"
    assert told in str(refused.value)


def test_a_column_of_csv_that_is_read_as_classes_too_keeps_its_whole_numbers(tmp_path: Path) -> None:
    given = csv_values(tmp_path, "csv", ["0", "1"] * 4)
    (tmp_path / "corpus" / "validation.csv").write_text("text,rating\na,1\nb,0\n")
    given["tasks"]["mood"] = {
        "type": "text-classification", "dataset": "texts", "labels": "rating", "label_names": ["bad", "good"],
    }  # fmt: skip
    batch = prepare(Recipe.from_dict(given)).streams["texts"].batch(range(8))
    assert batch["labels/rating"] == batch["labels/mood"] != [[0]] * 8
