"""``nlp-mtl label-errors``: planted errors are found, by models that did not see them."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typed_runs
from docs_project import commands, page, run_command, tiny_project
from planted import NOISE, found, planted, rows_of
from searched import Made, again, command, searched
from tiny import write_jsonl
from tiny_runs import finish, loss_lines, start, write_yaml

import nlp_mtl.label_error_folds
import nlp_mtl.label_errors
from nlp_mtl import Recipe, load, train
from nlp_mtl.build import new_model
from nlp_mtl.build_data import prepare
from nlp_mtl.data.folds import part_of
from nlp_mtl.evaluation import probabilities
from nlp_mtl.label_errors import label_errors
from nlp_mtl.training import checkpoint

pytest.importorskip("cleanlab")


FACTORS = {
    "quality": {"pos": 8, "sentiment": 4},
    "confidence": {"pos": 8, "sentiment": 2},  # the model has learned some of the wrong ones by heart
    "both": {"pos": 8, "sentiment": 5},
}
"""How much better than chance the worst tenth of the labels is, at least; chance finds a tenth of the errors there."""


@pytest.mark.slow
def test_at_ten_percent_noise_the_worst_tenth_is_far_better_than_chance(tmp_path: Path) -> None:
    given, wrong = planted(tmp_path, train=180, num_epochs=14, eval_every=10_000)
    recipe = Recipe.from_dict(given)
    # Rows of the texts that are held out are not looked at: they may be wrong, too.
    loaded = prepare(recipe).loaded["texts"].splits["train"].source_rows.tolist()
    wrong["sentiment"] = {item for item in wrong["sentiment"] if item[0] in loaded}
    told = []
    for by, factors in FACTORS.items():
        _, report = label_errors(recipe, folds=2, share=NOISE, by=by)
        for task, factor in factors.items():
            listed = found(report["errors"], task)
            assert len(listed) == round(NOISE * report["tasks"][task]["labels"])
            precision, recall = (len(listed & wrong[task]) / len(one) for one in (listed, wrong[task]))
            told.append(f"{task} by {by}: precision {precision:.2f}, recall {recall:.2f}")
            assert min(precision, recall) > factor * NOISE, told
    for task in ("pos", "sentiment"):
        assert report["tasks"][task]["estimated"] == pytest.approx(len(wrong[task]), rel=0.5)
    print(*told, sep="\n")


# ---- What follows needs no model that has learned much.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return searched(tmp_path_factory.mktemp("search"))


def test_the_folder_holds_what_was_promised_and_no_remains(made: Any) -> None:
    given, folder, report = made
    assert folder == Path(given["output_dir"] + "-label-errors")
    assert {path.name for path in folder.iterdir()} == {
        "search.json", "recipe.yaml", "folds.npz", "folds", "out_of_fold", "points", "label_errors.jsonl",
        "report.json", "review.jsonl",
    }  # fmt: skip
    assert {path.name for path in (folder / "folds").iterdir()} == {"fold-0", "fold-1", "fold-2"}
    assert not [*(folder / "points").iterdir(), *folder.rglob("*.partial"), *folder.rglob("checkpoints")]
    assert not [*folder.rglob("model")]
    assert rows_of(folder / "label_errors.jsonl") == report["errors"]
    kept = json.loads((folder / "report.json").read_text())
    assert kept == {key: value for key, value in report.items() if key not in ("errors", "written")}


def test_rows_and_words_are_told_by_their_numbers_in_the_file(made: Any) -> None:
    given, _, report = made
    corpus = Path(given["data_dir"])
    for line in report["errors"]:
        row = rows_of(corpus / line["dataset"] / "train.jsonl")[line["row"]]
        if line["task"] == "pos":
            assert (line["tokens"], line["given"]) == (row["tokens"], row["upos"][line["word"]])
        else:
            assert (line["text"], line["given"]) == (row["text"], row["label"])
    numbers = {line["row"] for line in report["errors"] if line["task"] == "sentiment"}
    held_out = {*range(40)} - {*prepare(Recipe.from_dict(given)).loaded["texts"].splits["train"].source_rows.tolist()}
    assert held_out
    assert not numbers & held_out
    qualities = [line["quality"] for line in report["errors"]]
    assert qualities == sorted(qualities)


def test_each_training_row_is_held_out_once_and_all_its_tasks_with_it(made: Any) -> None:
    given, folder, _ = made
    kept = np.load(folder / "folds.npz")
    assert {*kept} == {"digest", "rows/words", "rows/texts"}
    prepared = prepare(Recipe.from_dict(given))
    for name in ("words", "texts"):
        sizes = np.bincount(kept[f"rows/{name}"], minlength=3)
        assert sizes.sum() == len(prepared.encoded[name]["train"])
        for number in range(3):
            told = json.loads((folder / "folds" / f"fold-{number}" / "results.json").read_text())
            assert told["data"][name]["splits"]["train"]["rows"] == sizes.sum() - sizes[number]
            assert "test" not in told["scores"]


def test_a_fold_is_the_ordinary_training_on_the_other_rows_and_answers_for_those_that_it_did_not_see(
    made: Any, tmp_path: Path
) -> None:
    """Held against a run of the recipe on files without the fold, its predictions, and its checkpoints."""
    _, folder, _ = made
    number, kept = 1, np.load(folder / "folds.npz")
    recipe = Recipe.from_yaml(folder / "folds" / f"fold-{number}" / "recipe.yaml")
    prepared, values = prepare(recipe), recipe.to_dict()
    for name, one in values["datasets"].items():
        files = {}
        for split, rows in prepared.loaded[name].splits.items():
            chosen = [
                row for place, row in enumerate(rows.rows) if split != "train" or kept[f"rows/{name}"][place] != number
            ]
            files[split] = str(write_jsonl(tmp_path / name / f"{split}.jsonl", chosen))
        one["data_files"] = files
    values["training"] |= {"save_every": 1, "keep_last": 100}
    alone = Recipe.from_dict({**values, "output_dir": str(tmp_path / "alone")})
    train(alone)
    assert loss_lines(tmp_path / "alone") == loss_lines(folder / "folds" / f"fold-{number}")
    nlp, said = load(tmp_path / "alone"), np.load(folder / "out_of_fold" / f"fold-{number}.npz")
    held_out = prepared.loaded["texts"].splits["train"].rows[np.flatnonzero(kept["rows/texts"] == number)]["text"]
    answers = nlp(held_out, tasks=["sentiment"], all_scores=True)
    expected = [[*one["sentiment"]["scores"].values()] for one in answers]
    np.testing.assert_allclose(said["sentiment/texts/probabilities"], expected, atol=1e-5)
    held_out = prepared.loaded["words"].splits["train"].rows[np.flatnonzero(kept["rows/words"] == number)]["tokens"]
    answers = nlp(held_out, tasks=["pos"], all_scores=True)
    expected = [[*word["scores"].values()] for one in answers for word in one["pos"]]
    np.testing.assert_allclose(said["pos/words/probabilities"], expected, atol=1e-5)
    # Training dynamics are of rows that the model learned from: those of the next fold.
    learned = part_of(prepared.encoded["texts"]["train"], np.flatnonzero(kept["rows/texts"] == (number + 1) % 3))
    labels, (task,) = learned.classes("sentiment"), [one for one in prepared.tasks if one.name == "sentiment"]
    points = []
    for step in said["steps"]:
        model = new_model(alone, prepared)
        checkpoint.load_best(tmp_path / "alone" / "checkpoints" / f"step-{step}", model)
        found = probabilities(model, learned, [task], prepared.framing, max_tokens=128)["sentiment"]
        points.append(found[np.arange(len(labels)), labels])
    assert len(points) >= 3
    np.testing.assert_allclose(said["sentiment/texts/confidence"], np.mean(points, axis=0), atol=1e-5)
    np.testing.assert_allclose(said["sentiment/texts/variability"], np.std(points, axis=0), atol=1e-5)


def test_words_of_one_text_that_comes_again_are_in_one_fold(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    file = tmp_path / "corpus" / "words" / "train.jsonl"
    rows = rows_of(file)
    write_jsonl(file, rows + rows[::-1])
    folder, _ = label_errors(Recipe.from_dict(given), folds=3, tasks=["pos"], share=0.1)
    kept = np.load(folder / "folds.npz")
    assert {*kept} == {"digest", "rows/words"}, "other datasets are not dealt: their labels are not looked at"
    assert kept["rows/words"][:24].tolist() == kept["rows/words"][24:][::-1].tolist()


@pytest.mark.parametrize("name", ["file", "digest", "allow_pickle"])
def test_a_dataset_may_have_any_name(tmp_path: Path, name: str) -> None:
    given, _ = planted(tmp_path, train=24, num_epochs=0.1)
    given["datasets"][name] = given["datasets"].pop("words")
    given["tasks"]["pos"]["dataset"] = name
    found = [label_errors(Recipe.from_dict(given), folds=2, share=0.1)[1]["errors"] for _ in range(2)]
    assert {line["dataset"] for line in found[0]} == {name, "texts"}
    assert found[1] == found[0]


def test_a_recipe_that_evaluates_seldom_does_so_more_often_here_and_one_that_does_often_as_it_says(
    made: Any, tmp_path: Path
) -> None:
    _, folder, report = made
    assert all(len(points) >= 3 for points in report["points"])
    given, _ = planted(tmp_path, train=24, num_epochs=2, eval_every=1, early_stopping_patience=3)
    folder, report = label_errors(Recipe.from_dict(given), folds=2, share=0.1)
    recipe = Recipe.from_yaml(folder / "folds" / "fold-0" / "recipe.yaml")
    assert (recipe.training.eval_every, recipe.training.early_stopping_patience) == (1, 3)
    given["training"] |= {"eval_every": 100, "early_stopping_patience": 1}
    folder, report = label_errors(Recipe.from_dict(given), folds=2, share=0.1, output_dir=tmp_path / "seldom")
    recipe = Recipe.from_yaml(folder / "folds" / "fold-0" / "recipe.yaml")
    patience = recipe.training.early_stopping_patience
    assert recipe.training.eval_every * patience == pytest.approx(100, rel=0.3), "as long as the recipe has it"


def test_hidden_states_that_are_kept_are_those_of_each_fold(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=40, num_epochs=1, frozen_layers="encoder")
    kept = {**given, "training": {**given["training"], "cache_features": True}}
    found = []
    for name, values in (("run", given), ("kept", kept)):
        _, report = label_errors(Recipe.from_dict(values), folds=2, share=0.9, output_dir=tmp_path / name)
        places = {(one["task"], one["row"], one.get("word")): one["quality"] for one in report["errors"]}
        found.append(places)
    same = found[0].keys() & found[1].keys()
    assert len(same) > 0.8 * len(found[0])
    np.testing.assert_allclose([found[0][one] for one in same], [found[1][one] for one in same], atol=1e-3)


def test_of_several_labels_a_text_sets_are_told_and_numbers_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = typed_runs.values(tmp_path, num_epochs=0.2)
    with caplog.at_level(logging.INFO, "nlp_mtl"):
        _, report = label_errors(Recipe.from_dict(given), folds=2, share=0.2)
    assert {*report["tasks"]} == {"pos", "sentiment", "tags"}
    assert "`rating`: numbers (regression) are not looked at" in caplog.text
    rows = rows_of(tmp_path / "corpus" / "texts" / "train.jsonl")
    listed = [line for line in report["errors"] if line["task"] == "tags"]
    assert all(line["given"] == rows[line["row"]]["tags"] for line in listed)
    assert len(listed) == round(0.2 * len(rows))
    assert "they have learned too little to tell errors" in caplog.text


@pytest.mark.parametrize("tags", [[[], ["funny"]], [["funny"], ["funny", "long"]]])
def test_labels_that_all_texts_have_and_sets_of_one_label_end_in_a_report(
    tmp_path: Path, tags: list[list[str]]
) -> None:
    given = typed_runs.values(tmp_path, num_epochs=0.2)
    file = tmp_path / "corpus" / "texts" / "train.jsonl"
    write_jsonl(file, [{**row, "tags": tags[number % 2]} for number, row in enumerate(rows_of(file))])
    given["datasets"]["texts"] |= {"splits": {"validation": None, "test": None}, "validation_fraction": 0.2}
    given["tasks"] = {name: given["tasks"][name] for name in ("pos", "tags")}
    _, report = label_errors(Recipe.from_dict(given), folds=2, tasks=["tags"])
    assert {*report["tasks"]["tags"]["of_labels"]} == {*tags[1]}
    assert report["tasks"]["tags"]["listed"] == report["tasks"]["tags"]["estimated"]


def test_what_is_ranked_or_listed_otherwise_trains_nothing_again(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, report = made
    monkeypatch.setattr(nlp_mtl.label_error_folds, "train_part", None)
    assert again(made)["errors"] == report["errors"]
    by_confidence = again(made, by="confidence", share=0.1)
    confidences = [line["confidence"] for line in by_confidence["errors"]]
    assert confidences == sorted(confidences)
    assert len(confidences) < len(report["errors"])
    assert len(again(made, share=None)["errors"]) == sum(one["estimated"] for one in report["tasks"].values())


def test_the_terminal_shows_the_worst_of_each_task(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, folder, report = made
    path = write_yaml(tmp_path, given)
    options = ("--folds", 3, "--share", 0.2, "--output-dir", folder)
    assert command(path, *options, "--task", "pos,sentiment", "--by", "quality") == 0
    printed = capsys.readouterr().out
    assert "Labels that are likely wrong" in printed
    assert f"All of them: {folder / 'label_errors.jsonl'}" in printed
    worst = next(line for line in report["errors"] if line["task"] == "sentiment")
    assert worst["text"] in printed
    word = next(line for line in report["errors"] if line["task"] == "pos")
    assert f"[{word['tokens'][word['word']]}]" in printed
    assert command(path, "--folds", 3, "--task", "poss") == 2
    assert "Did you mean `pos`?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_of_the_page_work_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_project(tmp_path))
    *first, last = commands("nlp-mtl", page("docs/label_errors.md"))
    assert [words[1] for words in (*first, last)] == ["label-errors"] * 4
    for words in first:
        assert "Labels that are likely wrong" in run_command(words, monkeypatch, capsys)
    review = Path("runs/demo-label-errors/review.jsonl")
    write_jsonl(review, [{**line, "label": line["proposed"]} for line in rows_of(review)])
    assert "demo: " in run_command(last, monkeypatch, capsys)
    Recipe.from_yaml("runs/demo-label-errors/reviewed/recipe.yaml")


@pytest.mark.long
def test_two_processes_find_what_one_does(made: Any, tmp_path: Path) -> None:
    given, folder, _ = made
    path = write_yaml(tmp_path, given)
    options = ("label-errors", path, "--folds", "3", "--share", "0.2", "--output-dir", tmp_path / "two")
    code, _, errors = finish(start(*options, processes=2), timeout=400)
    assert code == 0, errors
    qualities = [
        [line["quality"] for line in rows_of(one / "label_errors.jsonl")] for one in (folder, tmp_path / "two")
    ]
    np.testing.assert_allclose(qualities[0], qualities[1], atol=1e-3)
