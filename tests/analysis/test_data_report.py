"""What ``nlp-mtl check`` finds, each with its place."""

from pathlib import Path
from typing import Any

import pytest
from tiny import recipe, save_encoder, write_jsonl

from nlp_mtl import Recipe
from nlp_mtl.run_check import check

WORDS = ["anna", "loves", "rome"]


def report(
    folder: Path,
    rows: dict[str, dict[str, list[dict[str, Any]]]],
    batch_size: int = 2,
    layout: str = "auto",
    **changes: Any,
) -> dict[str, Any]:
    """The report on text datasets ``{dataset: {split: rows}}`` that all carry the one task ``mood``."""
    values = recipe(folder, corpus=folder, encoder_folder=save_encoder(folder / "encoder"))
    files = {
        name: {split: str(write_jsonl(folder / name / f"{split}.jsonl", found)) for split, found in splits.items()}
        for name, splits in rows.items()
    }
    values["datasets"] = {
        name: {"data_files": found, "text": "text", "validation_fraction": 0, "test_fraction": 0, **changes}
        for name, found in files.items()
    }
    values["tasks"] = {"mood": {"type": "text-classification", "dataset": list(rows), "labels": "label"}}
    values["training"] |= {"batch_size": batch_size, "layout": layout}
    return check(Recipe.from_dict(values))


def texts(*labels: str, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"anna loves {'good ' * (start + n)}rome", "label": label} for n, label in enumerate(labels)]


def odd(folder: Path, rows: dict[str, dict[str, list[dict[str, Any]]]], **changes: Any) -> list[str]:
    return report(folder, rows, **changes)["odd"]


def test_sound_data_has_nothing_odd(tmp_path: Path) -> None:
    assert odd(tmp_path, {"a": {"train": texts("x", "y"), "test": texts("y", start=5)}}) == []


def test_a_step_of_more_rows_than_there_are_is_told(tmp_path: Path) -> None:
    (found,) = odd(tmp_path, {"a": {"train": texts("x", "y"), "test": texts("y", start=5)}}, batch_size=3)
    assert found.startswith("training.batch_size (3) is more than all 2 rows to train on")


def test_a_label_that_train_lacks_is_told_with_its_first_row(tmp_path: Path) -> None:
    data = {"a": {"train": texts("x", "y"), "validation": texts("y", "z", "z", start=5)}}
    assert odd(tmp_path, data) == [
        "task `mood`: the label `z` occurs in validation but never in train; first in dataset `a`, split validation, "
        f"row 1 of {tmp_path}/a/validation.jsonl (counted from 0)"
    ]


def test_a_text_in_two_splits_is_told_before_repeats_inside_one(tmp_path: Path) -> None:
    train = texts("x", "y", "x")
    found = odd(tmp_path, {"a": {"train": [*train, train[0]], "test": [train[2], *texts("y", start=9)]}})
    assert found == [
        f"the same text in dataset `a`, split train, row 2 of {tmp_path}/a/train.jsonl (counted from 0) and in "
        f"dataset `a`, split test, row 0 of {tmp_path}/a/test.jsonl (counted from 0)",
        f"the same text in dataset `a`, split train, row 0 of {tmp_path}/a/train.jsonl (counted from 0) and in "
        f"dataset `a`, split train, row 3 of {tmp_path}/a/train.jsonl (counted from 0)",
    ]


def test_a_text_in_two_datasets_of_one_task_is_told(tmp_path: Path) -> None:
    shared = texts("x", "y")
    data = {"a": {"train": shared}, "b": {"train": texts("x", "y", start=5), "test": shared[1:]}}
    assert odd(tmp_path, data) == [
        f"the same text in dataset `a`, split train, row 1 of {tmp_path}/a/train.jsonl (counted from 0) and in "
        f"dataset `b`, split test, row 0 of {tmp_path}/b/test.jsonl (counted from 0)"
    ]


def test_many_places_are_counted_rather_than_listed(tmp_path: Path) -> None:
    rows = texts(*"xyxyxyxy")
    found = odd(tmp_path, {"a": {"train": rows, "test": rows}})
    assert len(found) == 4
    assert found[3] == "dataset `a`, split test: 5 more texts that are also in dataset `a`, split train"


def test_the_two_sides_of_a_carved_split_are_told_apart(tmp_path: Path) -> None:
    rows = [{"text": "anna loves rome", "label": "xy"[n % 2]} for n in range(20)]
    found = "\n".join(odd(tmp_path, {"a": {"train": rows}}, validation_fraction=0.2))
    assert "split train, row" in found
    assert "and in dataset `a`, split validation (held out of train), row" in found


def test_rows_that_teach_nothing_are_told(tmp_path: Path) -> None:
    rows = [*texts("x", "y"), {"text": "", "label": "x"}, {"text": "anna", "label": None}]
    found = odd(tmp_path, {"a": {"train": rows}})
    assert found == [
        f"dataset `a`, split train, row 2 of {tmp_path}/a/train.jsonl (counted from 0): no word in it",
        f"dataset `a`, split train, row 3 of {tmp_path}/a/train.jsonl (counted from 0): no label of any task",
    ]


def test_a_word_longer_than_a_window_is_told(tmp_path: Path) -> None:
    rows = [*texts("x", "y"), {"text": "un" + "s" * 80, "label": "x"}]
    made = report(tmp_path, {"a": {"train": rows}})
    assert made["odd"] == [
        f"dataset `a`, split train, row 2 of {tmp_path}/a/train.jsonl (counted from 0): "
        "a word longer than a window; only its start is read"
    ]
    assert made["splits"][0]["cut_words"] == 1


@pytest.mark.parametrize(("tags", "place"), [(["I-PER", "O", "O"], 0), (["B-PER", "O", "I-PER"], 2)])
def test_tags_that_break_iob2_are_told_with_row_and_word(tmp_path: Path, tags: list[str], place: int) -> None:
    values = recipe(tmp_path)
    rows = [{"tokens": WORDS, "ner": ["B-PER", "I-PER", "O"], "upos": ["A", "B", "C"]}] * 2
    rows.append({"tokens": [*WORDS, "."][:3], "ner": tags, "upos": ["A", "B", "C"]})
    file = write_jsonl(tmp_path / "iob.jsonl", rows)
    values["datasets"]["words"] |= {"data_files": str(file), "validation_fraction": 0, "test_fraction": 0}
    found = [line for line in check(Recipe.from_dict(values))["odd"] if "IOB2" in line]
    assert found == [
        f"task `ner`: invalid IOB2 in dataset `words`, split train, row 2 of {file} (counted from 0): "
        f"I-PER at word {place} continues no span"
    ]


def test_counts_lengths_sampling_and_padding_are_those_of_the_data(tmp_path: Path) -> None:
    data = {"a": {"train": texts("x", "y", "x", "x")}, "b": {"train": texts("x", "y", start=4)}}
    made, packed = (report(tmp_path, data, batch_size=16, layout=layout) for layout in ("padded", "packed"))
    lengths = [5 + n for n in range(4)]  # three words, two special tokens, and n times "good"
    first = made["splits"][0]
    assert (first["rows"], first["tokens"], first["length_max"]) == (4, sum(lengths), 8)
    assert made["labels"][0]["counts"] == {"x": 3, "y": 1}
    assert [row["share"] for row in made["sampling"]] == pytest.approx([4 / 6, 2 / 6])
    assert [row["passes"] for row in made["sampling"]] == pytest.approx([2, 2])
    # Two epochs are one step of 12 rows, and starting a second micro-batch would cost more than the padding of one.
    step = made["first_micro_batch"]
    assert (step["micro_batches_in_step"], step["rows"], step["longest"]) == (1, 12, 10)
    assert step["padding"] == step["padding_in_step"] == pytest.approx(1 - 2 * (sum(lengths) + 9 + 10) / (12 * 10))
    assert step["labelled_rows"] == {"mood": 12}
    assert [one["steps"]["layout"] for one in (made, packed)] == ["padded", "packed"]
    assert packed["first_micro_batch"] == {**step, "padding": 0, "padding_in_step": 0}


def test_a_dataset_that_is_not_trained_on_is_told_as_that(tmp_path: Path) -> None:
    values = recipe(tmp_path)
    values["datasets"]["more"] = {**values["datasets"]["texts"]}
    values["tasks"]["sentiment"]["dataset"] = ["texts", "more"]
    values["sampling"] = {"strategy": "fixed", "shares": {"words": 1, "texts": 0, "more": 3}}
    told = {row["dataset"]: row for row in check(Recipe.from_dict(values))["sampling"]}
    assert {name: (row["share"], row["rows"]) for name, row in told.items()} == {
        "words": (0.25, 48), "texts": (0.0, 48), "more": (0.75, 48),
    }  # fmt: skip
    assert [told[name]["passes"] == 0 for name in told] == [False, True, False]
