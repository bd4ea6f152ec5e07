"""Labels that are taken out or replaced: the datasets that are written teach what they should."""

import random
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest
import typed_runs
from planted import found, planted, rows_of
from searched import Made, new_data, searched, train_rows
from searched import told as searched_in_vain
from tiny import write_jsonl
from tiny_runs import write_yaml

import nlp_mtl.label_error_folds
from nlp_mtl import DataError, Recipe, train
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.cli import main
from nlp_mtl.label_error_edits import write_dataset
from nlp_mtl.label_errors import label_errors

pytest.importorskip("cleanlab")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return searched(tmp_path_factory.mktemp("search"))


def test_without_the_worst_a_text_is_gone_and_a_word_has_no_label_and_all_else_is_as_it_was(made: Made) -> None:
    given, _, _ = made
    before = {path: path.read_bytes() for path in Path(given["data_dir"]).rglob("*.jsonl")}
    written = new_data(made, drop=0.1)
    recipe, clean = Recipe.from_dict(given), Recipe.from_yaml(written["recipe"])
    old, new = train_rows(recipe, "texts"), train_rows(clean, "texts")
    numbers = prepare(recipe).loaded["texts"].splits["train"].source_rows.tolist()
    worst = [line for line in written["errors"] if line["task"] == "sentiment"][: round(0.1 * len(old))]
    gone = {line["row"] for line in worst}
    assert new == [row for number, row in zip(numbers, old, strict=True) if number not in gone]
    assert written["datasets"]["texts"] == {"rows": len(new), "left_out": len(gone), "edited": 0}
    old, new = train_rows(recipe, "words"), train_rows(clean, "words")
    count = round(0.1 * sum(len(row["upos"]) for row in old))
    worst = [line for line in written["errors"] if line["task"] == "pos"][:count]
    for line in worst:
        old[line["row"]]["upos"][line["word"]] = None
    assert new == old
    for split in ("validation", "test"):  # those of the texts were held out of train, and remain the same rows
        for name in ("words", "texts"):
            rows = [[*prepare(one).loaded[name].splits[split].rows] for one in (recipe, clean)]
            assert rows[0] == rows[1]
    assert {path: path.read_bytes() for path in Path(given["data_dir"]).rglob("*.jsonl")} == before
    assert clean.output_dir == f"{given['output_dir']}-dropped"


def test_the_overrides_that_are_told_make_the_recipe_read_the_new_files(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, folder, _ = made
    path = write_yaml(tmp_path, given)
    with pytest.raises(SystemExit):
        main(
            ["label-errors", str(path), "--folds", "3", "--share", "0.2", "--drop", "0.1", "--output-dir", str(folder)]
        )
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Or: nlp-mtl train "))
    _, _, _, recipe, *overrides = shlex.split(line)
    read, clean = Recipe.from_yaml(recipe, overrides).to_dict(), Recipe.from_yaml(folder / "dropped" / "recipe.yaml")
    assert {**read, "output_dir": ""} == {**clean.to_dict(), "output_dir": ""}
    train(Recipe.from_dict({**clean.to_dict(), "output_dir": str(tmp_path / "run")}))


def test_words_of_a_span_lose_their_labels_together(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=40, num_epochs=0.2)
    given["tasks"] = {"ner": {"type": "token-classification", "dataset": "words", "labels": "ner"}}
    del given["datasets"]["texts"]
    draw = random.Random(0)
    tags = ["B-PER", "I-PER", "I-PER", "O", "O", "B-LOC", "I-LOC"]
    words = [[*draw.choices(["anna", "bob"], k=3), "of", "a", *draw.choices(["rome", "oslo"], k=2)] for _ in range(40)]
    write_jsonl(tmp_path / "corpus" / "words" / "train.jsonl", [{"tokens": one, "ner": tags} for one in words])
    recipe = Recipe.from_dict(given)
    _, report = label_errors(recipe, folds=2, drop=0.2)
    spans = 0
    old, new = train_rows(recipe, "words"), train_rows(Recipe.from_yaml(report["written"]["recipe"]), "words")
    listed = found(report["errors"], "ner")
    for number, (one, other) in enumerate(zip(old, new, strict=True)):
        for word, label in enumerate(other["ner"]):
            if label is not None:
                assert label == one["ner"][word]
                assert label[:2] != "I-" or other["ner"][word - 1] is not None, "no span is left without its beginning"
            else:
                spans += (number, word) not in listed
    assert spans, "a whole span was taken out for one of its words"


def test_a_row_that_other_tasks_label_stays_without_this_label(tmp_path: Path) -> None:
    given = typed_runs.values(tmp_path, num_epochs=0.2)
    recipe = Recipe.from_dict(given)
    _, report = label_errors(recipe, folds=2, tasks=["sentiment", "tags"], drop=0.1)
    clean = train_rows(Recipe.from_yaml(report["written"]["recipe"]), "texts")
    old = train_rows(recipe, "texts")
    assert len(clean) == len(old)
    for key, task in (("label", "sentiment"), ("tags", "tags")):
        gone = {number for number, row in enumerate(clean) if row[key] is None}
        assert gone == {row for row, _ in sorted(found(report["errors"], task))} & gone
        assert len(gone) == round(0.1 * len(old))
        assert all(row[key] == old[number][key] for number, row in enumerate(clean) if number not in gone)
    assert [row["rating"] for row in clean] == [row["rating"] for row in old]


def prepared_of(folder: Path, rows: datasets.Dataset, task: dict[str, Any], **dataset: Any) -> tuple[Recipe, Prepared]:
    """A dataset in a folder, with types as on the Hub."""
    given, _ = planted(folder, train=24)
    datasets.DatasetDict({"train": rows}).save_to_disk(folder / "unused")
    (folder / "data").mkdir()
    rows.to_parquet(folder / "data" / "train.parquet")
    given["datasets"] = {"d": {"data_files": {"train": str(folder / "data" / "train.parquet")}, **dataset}}
    given["tasks"] = {"t": {"dataset": "d", "labels": "labels", **task}}
    recipe = Recipe.from_dict(given)
    return recipe, prepare(recipe, splits=("train",))


def written_rows(folder: Path, recipe: Recipe, prepared: Prepared, edits: Any) -> tuple[Recipe, list[dict[str, Any]]]:
    told = write_dataset(folder / "new", recipe, prepared, edits, "new")
    return Recipe.from_yaml(told["recipe"]), rows_of(folder / "new" / "d" / "train.jsonl")


def targets_of(prepared: Prepared) -> list[Any]:
    """What each row teaches, by name."""
    (task,) = prepared.tasks
    column = prepared.encoded["d"]["train"].rows["labels/t"]
    return [[task.labels[one] if one >= 0 else None for one in target] for target in column]


TWENTY = [f"text number {n}" for n in range(20)]


def test_classes_are_written_by_name_and_the_label_set_stays(tmp_path: Path) -> None:
    features = datasets.Features({
        "text": datasets.Value("string"), "labels": datasets.ClassLabel(names=["z", "never", "a"]),
    })  # fmt: skip
    rows = datasets.Dataset.from_dict({"text": TWENTY, "labels": [0, 2] * 9 + [-1, 2]}, features=features)
    recipe, prepared = prepared_of(
        tmp_path, rows, {"type": "text-classification", "label_map": {"a": "A"}}, text="text"
    )
    assert prepared.tasks[0].labels == ("z", "never", "A")
    place = targets_of(prepared).index(["z"])
    new, written = written_rows(tmp_path, recipe, prepared, {"d": {place: {"t": [2]}}})
    before = dict(zip(TWENTY, ["z", "a"] * 9 + [None, "a"], strict=True))
    text = prepared.loaded["d"].splits["train"].rows[place]["text"]
    assert all(row["labels"] == {**before, text: "a"}[row["text"]] for row in written)
    again = prepare(new, splits=("train",))
    assert again.tasks[0].labels == prepared.tasks[0].labels
    expected = targets_of(prepared)
    expected[place] = ["A"]
    assert targets_of(again) == expected


def test_tags_in_numbers_keep_their_numbers(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"tokens": [text.split() for text in TWENTY], "labels": [[0, 1, 2]] * 20})
    task = {"type": "token-classification", "label_names": ["O", "B-X", "I-X"]}
    recipe, prepared = prepared_of(tmp_path, rows, task, tokens="tokens")
    new, written = written_rows(tmp_path, recipe, prepared, {"d": {1: {"t": [1, -100, 0]}, 2: {"t": []}}})
    assert [row["labels"] for row in written[:3]] == [[0, 1, 2], [1, None, 0], [0, 1, 2]]
    assert len(written) == len(prepared.encoded["d"]["train"]) - 1, "a row without any label is left out"
    assert targets_of(prepare(new, splits=("train",)))[1] == ["B-X", None, "O"]


@pytest.mark.parametrize("boolean", [False, True])
def test_lists_of_zeros_and_ones_stay_such_lists(tmp_path: Path, boolean: bool) -> None:
    kind = bool if boolean else int
    rows = datasets.Dataset.from_dict({"text": TWENTY, "labels": [[kind(1), kind(0), kind(n % 2)] for n in range(20)]})
    task = {"type": "multi-label-classification", "label_names": ["x", "y", "z"], "label_map": {"y": "Y"}}
    recipe, prepared = prepared_of(tmp_path, rows, task, text="text")
    new, written = written_rows(tmp_path, recipe, prepared, {"d": {0: {"t": [0, 1, 0]}, 1: {"t": [0, 0, 0]}}})
    assert [row["labels"] for row in written[:2]] == [[0, 1, 0], [0, 0, 0]]
    again = prepare(new, splits=("train",))
    assert again.tasks[0].labels == ("x", "Y", "z")
    kept = again.encoded["d"]["train"].rows["labels/t"]
    assert kept[:2] == [[0, 1, 0], [0, 0, 0]]
    assert kept[2:] == prepared.encoded["d"]["train"].rows["labels/t"][2:]


@pytest.mark.parametrize("is_class", [False, True])
def test_a_label_that_only_another_dataset_has_can_be_written_where_labels_have_names(
    tmp_path: Path, is_class: bool
) -> None:
    given, _ = planted(tmp_path, train=24)
    numbers: Any = datasets.ClassLabel(names=["negative", "positive"]) if is_class else datasets.Value("int64")
    features = datasets.Features({"text": datasets.Value("string"), "label": numbers})
    rows = datasets.Dataset.from_dict({"text": TWENTY, "label": [0, 1] * 10}, features=features)
    rows.to_parquet(tmp_path / "numbers.parquet")
    given["datasets"]["numbers"] = {"data_files": str(tmp_path / "numbers.parquet"), "text": "text"}
    given["tasks"]["sentiment"] |= {"dataset": ["texts", "numbers"]}
    if not is_class:
        given["tasks"]["sentiment"]["label_map"] = {"0": "negative", "1": "positive"}
    file = tmp_path / "corpus" / "texts" / "train.jsonl"
    write_jsonl(
        file, [{**row, "label": "mixed" if n % 4 == 0 else row["label"]} for n, row in enumerate(rows_of(file))]
    )
    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe, splits=("train",))
    mixed = next(task for task in prepared.tasks if task.name == "sentiment").labels.index("mixed")
    edits: Any = {"numbers": {0: {"sentiment": [mixed]}}}
    if not is_class:
        with pytest.raises(DataError, match="the column `label` has no value that means `mixed`"):
            write_dataset(tmp_path / "new", recipe, prepared, edits, "new")
        return
    again = prepare(Recipe.from_yaml(write_dataset(tmp_path / "new", recipe, prepared, edits, "new")["recipe"]))
    task = next(task for task in again.tasks if task.name == "sentiment")
    labels = [task.labels[one] for one in again.encoded["numbers"]["train"].classes("sentiment")]
    assert labels[0] == "mixed"
    assert {*labels[1:]} == {"negative", "positive"}


def test_classes_are_not_written_by_name_where_that_would_rename_the_numbers_of_another_dataset(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24)
    features = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"]),
    })  # fmt: skip
    rows = {"text": TWENTY, "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "classes.parquet")
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "numbers.parquet")
    given["datasets"] = {
        name: {"data_files": str(tmp_path / f"{name}.parquet"), "text": "text"} for name in ("classes", "numbers")
    }
    task = {"type": "text-classification", "dataset": ["classes", "numbers"], "labels": "label"}
    given["tasks"] = {"sentiment": {**task, "label_map": {"0": "positive", "1": "negative"}}}

    def labels(prepared: Prepared) -> list[str]:
        return [prepared.tasks[0].labels[one] for one in prepared.encoded["numbers"]["train"].classes("sentiment")]

    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe, splits=("train",))
    edits: Any = {"classes": {0: {"sentiment": []}}}
    with pytest.raises(DataError, match="`label_names`, which would then rename the numbers of `numbers`"):
        write_dataset(tmp_path / "new", recipe, prepared, edits, "new")
    assert not [*tmp_path.glob("new*")]
    of_numbers = write_dataset(tmp_path / "n", recipe, prepared, {"numbers": {0: {"sentiment": []}}}, "n")
    assert labels(prepare(Recipe.from_yaml(of_numbers["recipe"]), splits=("train",))) == labels(prepared)[1:]
    given["tasks"] = {"sentiment": {**task, "label_names": ["positive", "negative"]}}  # as the message says
    recipe = Recipe.from_dict(given)
    named = prepare(recipe, splits=("train",))
    assert labels(named) == labels(prepared)
    written = write_dataset(tmp_path / "new", recipe, named, edits, "new")
    assert labels(prepare(Recipe.from_yaml(written["recipe"]), splits=("train",))) == labels(prepared)


def test_two_tasks_on_one_column_have_to_agree(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24)
    given["tasks"]["mood"] = {**given["tasks"]["sentiment"], "label_map": {"positive": "good", "negative": "bad"}}
    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe, splits=("train",))
    labels = prepared.encoded["texts"]["train"].classes("sentiment").tolist()
    other = 1 - labels[0]
    for edit in ({"sentiment": [labels[0]], "mood": [other]}, {"sentiment": []}, {"mood": [other]}):
        with pytest.raises(DataError, match=r"both read the column `label`.* Copy the column"):
            write_dataset(tmp_path / "new", recipe, prepared, {"texts": {0: edit}}, "new")
        assert not [*tmp_path.glob("new*")]
    edits: Any = {"texts": {0: {"sentiment": [], "mood": []}, 1: {"sentiment": [labels[1]]}}}
    told = write_dataset(tmp_path / "new", recipe, prepared, edits, "new")
    assert told["datasets"]["texts"]["left_out"] == 1


def test_two_tasks_on_one_column_are_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    given["tasks"]["mood"] = {**given["tasks"]["sentiment"], "label_map": {"positive": "good", "negative": "bad"}}
    recipe = Recipe.from_dict(given)
    with monkeypatch.context() as untrained:
        untrained.setattr(nlp_mtl.label_error_folds, "train_part", None)
        message = searched_in_vain(recipe, folds=2, drop=0.1, tasks=["sentiment"])
    assert "dataset `texts`: the tasks `sentiment`, `mood` read the column `label`, so a label" in message
    label_errors(recipe, folds=2, drop=0.1, tasks=["pos"])
    caplog.clear()
    label_errors(recipe, folds=2, review=True, output_dir=tmp_path / "reviewed")
    assert "dataset `texts`: the tasks `sentiment`, `mood` read the column `label`" in caplog.text


def test_splits_that_were_left_out_stay_left_out(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24)
    given["datasets"]["texts"] |= {"splits": {"test": None}, "max_rows": {"train": 12}, "stratify": "label"}
    given["datasets"]["words"]["data_files"].pop("test")
    given["datasets"]["words"] |= {"test_fraction": 0}
    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe, splits=("train",))
    edits: Any = {"texts": {0: {"sentiment": []}}, "words": {0: {"pos": []}}}
    told = write_dataset(tmp_path / "new", recipe, prepared, edits, "new")
    clean = prepare(Recipe.from_yaml(told["recipe"]))
    for name in ("texts", "words"):
        assert {*clean.loaded[name].splits} == {*prepared.loaded[name].splits} == {"train", "validation"}
        sizes = [len(one.loaded[name].splits["train"].rows) for one in (prepared, clean)]
        assert sizes[0] - 1 == sizes[1]
