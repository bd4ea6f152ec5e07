"""Searches for label errors that cannot be made, and folders that are not theirs."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typed_runs
from planted import planted, rows_of
from searched import Made, again, searched, told
from tiny import write_jsonl
from tiny_runs import streamed_values

import nlp_mtl.label_error_folds
import nlp_mtl.label_errors
from nlp_mtl import Recipe, RunError
from nlp_mtl.label_errors import label_errors
from nlp_mtl.storage import held

pytest.importorskip("cleanlab")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return searched(tmp_path_factory.mktemp("search"))


def test_two_searches_in_one_folder_are_refused(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, _ = made
    monkeypatch.setattr(nlp_mtl.label_errors, "held", partial(held, wait=0))
    with held(folder), pytest.raises(RunError, match=f"another process works in {folder}"):
        again(made)


def test_arguments_that_make_no_sense_are_told(made: Any, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(made[0])
    assert "at least two" in told(recipe, folds=1)
    assert "Did you mean `confidence`?" in told(recipe, by="confidenc")
    assert "share is 2; it is a share" in told(recipe, share=2)
    assert "between 0 and 1: 0.02 is 2%" in told(recipe, drop=0.0)
    assert "exclude each other" in told(recipe, drop=0.1, review=True)
    assert "exclude each other" in told(recipe, apply="review.jsonl", overwrite=True)
    assert "no task `sentimnt`" in (message := told(recipe, tasks=["sentimnt"]))
    assert "Did you mean `sentiment`?" in message
    typed = Recipe.from_dict(typed_runs.values(tmp_path))
    assert "`rating`: label errors are looked for among classes" in told(typed, tasks=["rating", "pos"])


def test_what_is_no_search_is_left_alone(made: Any, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(made[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    for overwrite in (False, True):
        assert "no search for label errors" in told(recipe, output_dir=tmp_path / "mine", overwrite=overwrite)
    assert "whose review could be applied" in told(recipe, output_dir=tmp_path / "new", apply="review.jsonl")
    assert f"{tmp_path / 'mine' / 'notes.txt'} is a file" in told(recipe, output_dir=tmp_path / "mine" / "notes.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_another_recipe_and_other_folds_or_tasks_are_another_search(made: Any) -> None:
    given, folder, _ = made
    before = (folder / "report.json").read_bytes()
    other = Recipe.from_dict({**given, "seed": 9})
    assert "seed: 0 -> 9" in (message := told(other, folds=3, output_dir=folder))
    assert "--overwrite" in message
    recipe = Recipe.from_dict(given)
    assert "was started with --folds 3: give that again" in told(recipe, folds=2, output_dir=folder)
    assert "was started with --task pos,sentiment" in told(recipe, folds=3, tasks=["pos"], output_dir=folder)
    assert (folder / "report.json").read_bytes() == before


@pytest.mark.parametrize("changed", ["words/train", "words/validation", "texts/train"])
def test_data_that_changed_are_told_also_those_whose_labels_are_not_looked_at(tmp_path: Path, changed: str) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    recipe = Recipe.from_dict(given)
    label_errors(recipe, folds=2, tasks=["pos"], share=0.1)
    file = tmp_path / "corpus" / f"{changed}.jsonl"
    rows = rows_of(file)
    if changed.startswith("words"):
        rows[0]["upos"][0] = "VERB" if rows[0]["upos"][0] == "NOUN" else "NOUN"
    else:
        rows = [{**row, "label": "positive" if row["label"] == "negative" else "negative"} for row in rows]
    write_jsonl(file, rows)
    message = told(recipe, folds=2, tasks=["pos"], share=0.1)
    assert "the training or validation data have changed since the search" in message


def test_overwrite_removes_what_an_earlier_search_left_but_no_review(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    recipe = Recipe.from_dict(given)
    folder, _ = label_errors(recipe, folds=2, share=0.1, review=True)
    (folder / "review.jsonl").write_text("edited")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    message = told(recipe, folds=3, share=0.1, review=True, overwrite=True)
    assert "review.jsonl is there already, of an earlier search, and may have been edited" in message
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing was removed, or trained"
    label_errors(recipe, folds=3, share=0.1, overwrite=True)
    assert json.loads((folder / "search.json").read_text())["flags"]["folds"] == 3
    assert {path.name for path in (folder / "folds").iterdir()} == {"fold-0", "fold-1", "fold-2"}
    assert (folder / "review.jsonl").read_text() == "edited"
    assert "is there already, and is another one, or was edited" in told(recipe, folds=3, share=0.1, review=True)
    (folder / "report.json").unlink()  # as if the folds were not all done
    assert "may have been edited" in told(recipe, folds=3, share=0.1, review=True)


def test_a_text_label_in_fewer_rows_than_folds_and_tasks_without_labels_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    file = tmp_path / "corpus" / "texts" / "train.jsonl"
    given["datasets"]["texts"] |= {"validation_fraction": 0, "test_fraction": 0}
    rows = rows_of(file)
    rows[3]["label"] = rows[9]["label"] = "mixed"
    write_jsonl(file, rows)
    message = told(Recipe.from_dict(given), folds=3)
    assert "task `sentiment`: `mixed (2)` of the training rows, fewer than the 3 folds" in message
    assert "--folds" in message
    label_errors(Recipe.from_dict(given), folds=2, share=0.1)
    words = rows_of(tmp_path / "corpus" / "words" / "train.jsonl")
    words[0]["upos"][0] = "X"
    write_jsonl(tmp_path / "corpus" / "words" / "train.jsonl", words)
    label_errors(Recipe.from_dict(given), folds=2, share=0.1, output_dir=tmp_path / "rare")
    assert "Task `pos`: `X (1)` of the training labels, fewer than the 2 folds" in caplog.text
    write_jsonl(tmp_path / "corpus" / "validation.jsonl", [row for row in rows if row["label"] != "mixed"])
    write_jsonl(file, [{**row, "label": None} for row in rows])
    given["datasets"]["texts"]["data_files"] = {"train": "texts/train.jsonl", "validation": "validation.jsonl"}
    assert "`sentiment` has no labelled training row" in told(Recipe.from_dict(given), output_dir=tmp_path / "none")


def test_a_label_of_near_doubles_alone_is_told_as_they_all_go_into_one_fold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    given["datasets"]["texts"] |= {"validation_fraction": 0, "test_fraction": 0}
    file = tmp_path / "corpus" / "texts" / "train.jsonl"
    rows = rows_of(file)
    for row in rows[:5]:
        row |= {"text": "of a film that was neither good nor bad", "label": "mixed"}
    write_jsonl(file, rows)
    message = told(Recipe.from_dict(given), folds=2)
    assert "task `sentiment`: all training rows of `mixed (5)` are in one fold, where rows that say the same" in message
    assert "label_map" in message
    assert not Path(f"{given['output_dir']}-label-errors", "search.json").exists()
    rows[4]["text"] = "this one is quite another text"
    write_jsonl(file, rows)
    words = rows_of(tmp_path / "corpus" / "words" / "train.jsonl")
    words[0]["upos"][:2] = ["X", "X"]
    write_jsonl(tmp_path / "corpus" / "words" / "train.jsonl", words)
    label_errors(Recipe.from_dict(given), folds=2, share=0.1)
    assert "Task `pos`: all training labels `X (2)` are in one fold" in caplog.text


def test_a_streamed_dataset_is_refused_where_its_labels_are_wanted(tmp_path: Path) -> None:
    given = streamed_values(tmp_path, max_steps=2, eval_every=1)
    assert "`texts`: the training rows are streamed" in told(Recipe.from_dict(given))
    _, report = label_errors(
        Recipe.from_dict(given), folds=2, tasks=["pos"], share=0.1, output_dir=tmp_path / "of-words"
    )
    assert {*report["tasks"]} == {"pos"}


def test_trained_models_are_not_asked_as_they_may_have_learned_the_labels_and_meta_runs_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    trained = {"distillation": {"teachers": {"pos": "./nowhere"}}, "compression": {"model": "./nowhere"}}
    taught = Recipe.from_dict({**given, **trained})
    with caplog.at_level(logging.INFO, "nlp_mtl"):
        folder, _ = label_errors(taught, folds=2, share=0.1)
    assert "Without `distillation`" in caplog.text
    of_fold = Recipe.from_yaml(folder / "folds" / "fold-0" / "recipe.yaml")
    assert (of_fold.distillation, of_fold.compression) == (None, None)
    assert "only `nlp-mtl extend MODEL RECIPE` reads it" in told(Recipe.from_dict({**given, "extension": {}}))
    given["training"] |= {"max_steps": 2, "num_epochs": 3}
    meta = Recipe.from_dict({**given, "meta": {"ways": 2, "shots": 1, "query": 1}})
    assert "meta: a run that learns from episodes keeps no heads" in told(meta)


def test_more_folds_than_texts_are_refused(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    file = tmp_path / "corpus" / "words" / "train.jsonl"
    write_jsonl(file, [*rows_of(file)[:2]] * 12)
    message = told(Recipe.from_dict(given), folds=3, tasks=["pos"])
    assert "dataset `words` has 2 different training texts, too few for 3 folds" in message
