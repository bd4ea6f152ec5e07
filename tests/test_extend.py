"""A trained model gets more tasks: what of it stays, what is told, and what it learns of old tasks."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from extensions import OLD, SPLITS, TEXTS, base_run, changed, logits, more_of_the_words, new_values, weights
from tiny_runs import loss_lines, values
from transformers import pipeline

from nlp_mtl import DataError, Recipe, RecipeError, evaluate, extend, load, train
from nlp_mtl.build_data import prepare
from nlp_mtl.hub.export import export
from nlp_mtl.metrics import old_scores
from nlp_mtl.run_evaluation import run_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def default(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with a task more, where nothing was said of forgetting."""
    given = new_values(tmp_path_factory.mktemp("default"), num_epochs=4)
    extend(base, given)
    return Path(given["output_dir"])


def test_by_default_the_old_model_stays_bit_for_bit_and_what_is_new_learns(base: Path, default: Path) -> None:
    before, after = weights(base), weights(default)
    assert not changed(before, after)
    # Nothing read the encoder's pooler but text heads, and the old model has one.
    assert {name.split(".")[1] for name in after if name not in before} == {"topic_head"}
    old, new = logits(base), logits(default)
    assert [*new] == [*OLD, "topic"]
    for task in OLD:
        assert torch.equal(old[task], new[task])
    lines = loss_lines(default)
    assert [*lines[0]["losses"]] == ["topic"]
    assert lines[-1]["losses"]["topic"] < lines[0]["losses"]["topic"]


def test_old_tasks_are_scored_before_and_after_on_the_same_rows(base: Path, default: Path) -> None:
    results = json.loads((default / "results.json").read_text())
    before = json.loads((base / "results.json").read_text())["scores"]
    told = results["extension"]
    assert told["before"] == before
    assert (told["old_tasks"], told["new_tasks"], told["continued_tasks"]) == ([*OLD], ["topic"], [])
    assert (told["model"], told["from_hub"]) == (str(base), False)
    assert [(row["task"], row["split"]) for row in old_scores(results)] == [
        (task, split) for task in OLD for split in SPLITS[1:]
    ]
    assert all(row["before"] == row["after"] for row in old_scores(results))
    assert [*results["scores"]["test"]] == [*OLD, "topic"]


def test_an_extended_run_is_evaluated_answers_and_exports_like_any_other(default: Path, tmp_path: Path) -> None:
    results = json.loads((default / "results.json").read_text())
    assert evaluate(default) == results["scores"]["test"]
    assert evaluate(default, split="train").keys() == {*OLD, "topic"}
    answer = load(default)(TEXTS[0])
    assert [*answer] == [*OLD, "topic"]
    export(default, "topic", tmp_path / "topic")
    (found,) = pipeline("text-classification", str(tmp_path / "topic"))([TEXTS[0]])
    assert found["label"] == answer["topic"]["label"]
    assert found["score"] == pytest.approx(answer["topic"]["score"], abs=1e-5)


def test_the_card_tells_what_was_extended(base: Path, default: Path) -> None:
    card = (default / "model" / "README.md").read_text()
    part = card.split("## What it extends\n")[1].split("\n## ")[0]
    assert "`run`: `ner`, `pos`, `sentiment`; new: `topic`" in part
    assert part.count("\n| ner |") == 2
    assert str(base) not in card


def test_a_saved_recipe_is_that_of_both_and_train_refuses_it(default: Path) -> None:
    recipe = run_recipe(default)
    assert ([*recipe.tasks], [*recipe.datasets]) == ([*OLD, "topic"], ["words", "texts", "news"])
    assert recipe.old_datasets == ["words", "texts"]
    assert recipe.learned_tasks == ["topic"]
    with pytest.raises(RecipeError, match=r"extension: only `nlp-mtl extend MODEL RECIPE` reads it"):
        train(recipe)


def test_hidden_states_of_a_frozen_model_may_be_kept_and_change_nothing(
    base: Path, default: Path, tmp_path: Path
) -> None:
    given = new_values(tmp_path, num_epochs=4, dropout=0.0)
    plain = extend(base, given)
    kept = extend(base, {**given, "training": {**given["training"], "cache_features": True},
                         "output_dir": str(tmp_path / "kept")})  # fmt: skip
    assert kept["scores"] == plain["scores"]
    one, other = weights(tmp_path / "extended"), weights(tmp_path / "kept")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4, msg=name)
    assert not changed(weights(base), other)


def test_a_new_task_may_read_an_old_dataset_whose_old_labels_are_not_learned_then(base: Path, tmp_path: Path) -> None:
    given = more_of_the_words(base, tmp_path, {"freeze": "nothing"})
    results = extend(base, given)
    lines = loss_lines(tmp_path / "extended")
    assert all([*line["losses"]] == ["nouns"] for line in lines)
    assert not [name for name in changed(weights(base), weights(tmp_path / "extended")) if name.startswith("heads.")]
    assert results["data"]["words"]["splits"]["train"]["rows"] == 48


def test_a_task_that_the_recipe_names_goes_on_learning_and_others_stay(base: Path, tmp_path: Path) -> None:
    old = run_recipe(base)
    given = new_values(tmp_path, {"freeze": "model"}, num_epochs=4)
    given["datasets"]["more"] = {**old.datasets["texts"].model_dump(exclude_unset=True), "data_dir": old.data_dir}
    given["tasks"]["sentiment"] = {"type": "text-classification", "dataset": "more", "labels": "label"}
    results = extend(base, given)
    found = changed(weights(base), weights(tmp_path / "extended"))
    assert {name.split(".")[1] for name in found} == {"sentiment_head"}
    assert results["extension"]["continued_tasks"] == ["sentiment"]
    assert [*results["scores"]["test"]] == [*OLD, "topic"]  # in the model's order
    assert {row["task"] for row in old_scores(results)} == {*OLD}


def test_a_task_whose_labels_are_others_is_refused_with_both(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path)
    given["tasks"] = {"sentiment": {**given["tasks"]["topic"]}}
    told = (
        r"task `sentiment`: the trained model's labels are `negative`, `positive`, but the data hold `other`, `place`"
    )
    with pytest.raises(DataError, match=told):
        extend(base, given)
    assert not (tmp_path / "extended").exists()


def test_tasks_can_be_added_one_after_the_other(base: Path, default: Path, tmp_path: Path) -> None:
    given = more_of_the_words(
        default, tmp_path, {"l2_to_start": 1, "importance": "fisher", "fisher_rows": 30, "replay": 8}
    )
    results = extend(default, given)
    assert results["extension"]["old_tasks"] == [*OLD, "topic"]
    assert [*results["scores"]["test"]] == [*OLD, "topic", "nouns"]
    # The first model's data are known by the second one's recipe, in the folder that they were in.
    recipe = run_recipe(tmp_path / "extended")
    assert recipe.old_datasets == ["texts", "news"]
    assert recipe.datasets["news"].data_dir == run_recipe(default).data_dir
    assert recipe.datasets["texts"].data_dir == run_recipe(base).data_dir
    before = json.loads((default / "results.json").read_text())["scores"]
    assert results["extension"]["before"] == before
    assert evaluate(tmp_path / "extended") == results["scores"]["test"]
    assert load(tmp_path / "extended").model.task_names == (*OLD, "topic", "nouns")


def test_rows_that_were_held_out_of_an_old_dataset_stay_held_out(tmp_path: Path) -> None:
    """Whatever the new recipe's seed, and whatever its tasks read."""
    given = values(tmp_path, max_steps=2)
    for dataset in given["datasets"].values():
        dataset["data_files"] = {"train": dataset["data_files"]["train"]}
    given["datasets"]["texts"]["max_rows"] = {"train": 30}
    train(Recipe.from_dict({**given, "seed": 3}))
    before = prepare(run_recipe(tmp_path / "run"))
    new = {**new_values(tmp_path, max_steps=2), "seed": 4, "split_seed": 9}
    new["tasks"]["length"] = {
        "type": "text-classification",
        "dataset": "texts",
        "labels": "label",
    }  # first of its kind?
    extend(tmp_path / "run", new)
    again = {**more_of_the_words(tmp_path, tmp_path, {}), "seed": 5, "output_dir": str(tmp_path / "again")}
    extend(tmp_path / "extended", again)
    for run in ("extended", "again"):
        after = prepare(run_recipe(tmp_path / run))
        for dataset in ("words", "texts"):
            for split in SPLITS:
                one, other = (p.encoded[dataset][split].source.source_rows for p in (before, after))
                np.testing.assert_array_equal(one, other)


def test_labels_that_go_together_stay_as_they_were_settled(tmp_path: Path) -> None:
    given = values(tmp_path, max_steps=4, eval_every=4)
    rule = {"tasks": ["ner", "pos"], "allowed": {"PER": ["PROPN"], "O": ["NOUN", "VERB", "PUNCT"]}}
    train(Recipe.from_dict({**given, "consistency": [rule]}))
    results = extend(tmp_path / "run", new_values(tmp_path))
    old, new = (load(tmp_path / run).model.config.consistency for run in ("run", "extended"))
    assert old == new
    assert all(row["before"] == row["after"] for row in old_scores(results))
    assert evaluate(tmp_path / "extended") == results["scores"]["test"]
    # Where nothing tells of old data, they stay with the model all the same.
    results = extend(tmp_path / "run" / "model", {**new_values(tmp_path), "output_dir": str(tmp_path / "alone")})
    assert load(tmp_path / "alone").model.config.consistency == old
    assert evaluate(tmp_path / "alone") == results["scores"]["test"]


def test_an_old_task_without_data_is_not_scored_and_that_is_told(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = new_values(tmp_path, {"old_tasks": ["sentiment"]})
    results = extend(base, given)
    assert "as their data are not read: `ner`, `pos`" in caplog.text
    assert {row["task"] for row in old_scores(results)} == {"sentiment"}
    assert not changed(weights(base), weights(tmp_path / "extended"))


def test_old_data_that_are_gone_are_told_with_the_way_out(tmp_path: Path) -> None:
    run = base_run(tmp_path, max_steps=1, num_epochs=1)
    (tmp_path / "corpus").rename(tmp_path / "moved")
    with pytest.raises(
        DataError, match=r"there is no folder .*`extension\.data_dir`, or .*`extension\.old_tasks: \[\]`"
    ):
        extend(run, new_values(tmp_path))
    with pytest.raises(DataError, match=r"extension\.data_dir"):
        extend(run, new_values(tmp_path, {"replay": 5}))
    results = extend(run, new_values(tmp_path, {"data_dir": str(tmp_path / "moved"), "replay": 5}))
    assert results["extension"]["before"] == json.loads((run / "results.json").read_text())["scores"]
    assert run_recipe(tmp_path / "extended").datasets["words"].data_dir == str(tmp_path / "moved")


def test_a_run_does_not_write_over_the_model_that_it_extends(base: Path, tmp_path: Path) -> None:
    for folder in (base, base / "model", base / "model" / "new", base.parent):
        with pytest.raises(RecipeError, match=r"output_dir: .* holds the model that is extended"):
            extend(base, {**new_values(tmp_path), "output_dir": str(folder)}, overwrite=True)
    assert (base / "model" / "model.safetensors").is_file()


def test_the_command_line_prints_old_tasks_before_and_after(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nlp_mtl.cli import main

    file = tmp_path / "topic.yaml"
    given = new_values(tmp_path)
    file.write_text(yaml.safe_dump(given))
    words = ["extend", str(base), str(file), "training.max_steps=2", f"output_dir={tmp_path / 'by-hand'}"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--resume", "auto"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    table = printed[printed.index("Old tasks, before and after") :]
    assert [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")] == [
        task for task in OLD for _ in range(2)
    ]
    assert "+0.0000" in table
    assert f"Run folder: {tmp_path / 'by-hand'}" in printed
    with pytest.raises(SystemExit) as ended:
        main(["extend", str(tmp_path / "nowhere"), str(file)])
    assert ended.value.code == 2
    assert "there is no model folder" in capsys.readouterr().err


def test_only_the_main_metric_of_tasks_that_are_there_is_compared(default: Path) -> None:
    results = json.loads((default / "results.json").read_text())
    results["extension"]["before"]["test"].pop("ner")
    results["scores"]["validation"].pop("pos")
    assert [(row["task"], row["split"]) for row in old_scores(results)] == [
        ("ner", "validation"), ("pos", "test"), ("sentiment", "validation"), ("sentiment", "test"),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
