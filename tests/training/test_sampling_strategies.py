"""Sampling strategies in runs: what a recipe says happens, and a resumed run ends in the same bits."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import assert_resumes_exactly, lines, score_lines, values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build import resampling, steps, trainer_arguments
from nlp_mtl.build_data import prepare
from nlp_mtl.data.rates import needed_rates
from nlp_mtl.errors import DataError

SETTINGS: dict[str, Any] = {
    "unimax": {"max_passes": 3},
    "annealed": {},
    "round_robin": {},
    "dynamic": {"need": "metric", "targets": {"ner": 0.9}, "floor": 0.1},
    "dynamic-loss": {"need": "loss"},
}


def recipe_of(folder: Path, name: str, **training: Any) -> Recipe:
    given = values(folder, **{"num_epochs": 2, "eval_every": 3, "log_every": 1, "keep_last": 9, **training})
    given["sampling"] = {"strategy": name.partition("-")[0], **SETTINGS[name]}
    return Recipe.from_dict(given)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, name: str, workers: int) -> None:
    recipe = recipe_of(tmp_path, name, num_workers=workers, dropout=0.1)
    assert_resumes_exactly(recipe, 6, tmp_path / "stopped")


def test_a_run_that_is_killed_between_evaluations_goes_on_with_the_losses_it_had_seen(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "dynamic-loss", save_every=1)
    assert_resumes_exactly(recipe, 5, tmp_path / "stopped")


@pytest.mark.parametrize("name", ["dynamic", "dynamic-loss"])
def test_dynamic_shares_follow_what_datasets_need(tmp_path: Path, name: str) -> None:
    recipe = recipe_of(tmp_path, name)
    train(recipe)
    written = lines(Path(recipe.output_dir))
    prepared = prepare(recipe)
    labels = {task.name: len(task.labels) for task in prepared.tasks}
    told = [line for line in score_lines(Path(recipe.output_dir)) if "shares" in line]
    assert len(told) == 3  # of four evaluations the last one changes nothing any more
    before = 0
    for line in told:
        if name == "dynamic":
            metrics = {"ner": "span_f1", "pos": "accuracy", "sentiment": "accuracy"}
            needs = {t: max((0.9 if t == "ner" else 1) - line["scores"][t][m], 0) for t, m in metrics.items()}
        else:
            found = [one["losses"] for one in written if "losses" in one and before < one["step"] <= line["step"]]
            needs = {
                task: float(np.mean([one[task] for one in found if task in one])) / math.log(labels[task])
                for task in labels
            }
        before = line["step"]
        of_datasets = [(needs["ner"] + needs["pos"]) / 2, needs["sentiment"]]
        assert [*line["shares"].values()] == pytest.approx(needed_rates(of_datasets, recipe.sampling.floor).tolist())
        assert [*line["shares"]] == ["words", "texts"]


def test_rows_are_drawn_by_the_shares_from_the_next_step_on(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "dynamic", batch_size=16)
    data = steps(recipe, prepare(recipe))
    data.sampler.resample(2, [0.875, 0.125])
    found = [Counter(data.sampler[step].datasets.tolist()) for step in range(6)]
    assert found[:2] == [{0: 8, 1: 8}] * 2
    assert sum(one[0] for one in found[2:6]) == pytest.approx(56, abs=1)


def test_dynamic_shares_that_can_never_change_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for eval_every, told in ((6, 1), (3, 0)):
        given = values(tmp_path, max_steps=6, eval_every=eval_every)
        recipe = Recipe.from_dict({**given, "sampling": {"strategy": "dynamic"}})
        caplog.clear()
        resampling(recipe, prepare(recipe))
        assert [record.getMessage()[:26] for record in caplog.records].count("sampling.strategy dynamic ") == told


@pytest.mark.parametrize(
    ("section", "strategy"),
    [("gradients", "pcgrad"), ("gradients", "gradnorm"), ("balancing", "maximum"), ("balancing", "famo")],
)
def test_what_weighs_tasks_against_each_other_is_refused_where_each_step_has_one(
    tmp_path: Path, section: str, strategy: str
) -> None:
    given = {**values(tmp_path), "sampling": {"strategy": "round_robin"}, section: {"strategy": strategy}}
    Recipe.from_dict(given)  # two of the tasks learn from one dataset
    del given["tasks"]["pos"]
    with pytest.raises(
        RecipeError, match=rf"{section}\.strategy: {strategy} weighs the tasks of a step against each other"
    ):
        Recipe.from_dict(given)
    Recipe.from_dict({**given, section: {}})
    taught = {"teachers": {"ner": "somewhere"}, "rows": "all"}  # on the rows of the other task, too
    Recipe.from_dict({**given, "distillation": taught})
    with pytest.raises(RecipeError, match="weighs the tasks of a step"):
        Recipe.from_dict({**given, "distillation": {**taught, "rows": "labelled"}})
    with pytest.raises(RecipeError, match=r"gradients\.measure_every: it compares the tasks of a step"):
        Recipe.from_dict({**given, "balancing": {}, "gradients": {"measure_every": 2}})


def test_strategies_that_have_nothing_to_mix_are_refused(tmp_path: Path) -> None:
    given = values(tmp_path)
    given["datasets"].pop("texts")
    given["tasks"].pop("sentiment")
    for name in ("temperature", "annealed", "round_robin", "dynamic"):
        with pytest.raises(
            RecipeError, match=rf"sampling\.strategy: there is one dataset, so {name} has nothing to mix"
        ):
            Recipe.from_dict({**given, "sampling": {"strategy": name}})
    Recipe.from_dict({**given, "sampling": {"strategy": "uniform"}})  # a stream of unknown size needs it


def test_a_dataset_whose_need_nobody_sees_is_told(tmp_path: Path) -> None:
    given = values(tmp_path)
    given["datasets"]["texts"]["validation_fraction"] = 0
    given["datasets"]["texts"]["splits"] = {"validation": None}
    given["sampling"] = {"strategy": "dynamic"}
    recipe = Recipe.from_dict(given)
    with pytest.raises(RecipeError, match=r"sampling\.need: no task of `texts` has labels on validation.*need: loss"):
        resampling(recipe, prepare(recipe))


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        ({"strategy": "uniform", "max_passes": 3}, r"sampling\.max_passes: only `strategy:` `unimax` reads it"),
        ({"floor": 0.1}, r"sampling\.floor: only `strategy:` `dynamic` reads it"),
        ({"strategy": "dynamic", "targets": {"nerr": 0.5}}, r"sampling\.targets\.nerr: .*Did you mean `ner`"),
        ({"strategy": "dynamic", "need": "loss", "targets": {"ner": 0.5}}, r"only `need: metric` reads them"),
        ({"strategy": "unimax", "max_passes": 2}, r"sampling\.max_passes: .*num_epochs"),
    ],
)
def test_keys_that_do_not_go_with_the_strategy_are_told(tmp_path: Path, sampling: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({**values(tmp_path, num_epochs=3), "sampling": sampling})


def test_a_run_longer_than_unimax_may_read_is_refused(tmp_path: Path) -> None:
    given = {**values(tmp_path, max_steps=10_000, num_epochs=5), "sampling": {"strategy": "unimax", "max_passes": 3}}
    recipe = Recipe.from_dict(given)
    with pytest.raises(RecipeError, match=r"max_passes: 3 passes over all .* are 288 rows, and the run draws 480"):
        steps(recipe, prepare(recipe))


@pytest.mark.parametrize("how", ["oversample", "undersample"])
def test_classes_of_a_dataset_without_labelled_rows_cannot_be_balanced(tmp_path: Path, how: str) -> None:
    given = values(tmp_path)
    (Path(given["data_dir"]) / "bare.jsonl").write_text('{"text": "good one", "label": null}\n' * 4)
    files = {"train": "bare.jsonl", "validation": "texts/validation.jsonl"}
    given["datasets"]["bare"] = {"data_files": files, "text": "text", how: "sentiment"}
    given["tasks"]["sentiment"]["dataset"] = ["texts", "bare"]
    recipe = Recipe.from_dict(given)
    with pytest.raises(DataError, match=rf"`bare` has no train row with a label of `sentiment`.*datasets\.bare\.{how}"):
        steps(recipe, prepare(recipe))


@pytest.mark.parametrize("how", ["oversample", "undersample"])
def test_classes_are_balanced_as_the_recipe_says(tmp_path: Path, how: str) -> None:
    given = values(tmp_path)
    given["datasets"]["texts"][how] = "sentiment"
    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe)
    data = steps(recipe, prepared)
    classes = prepared.split("train")["texts"].classes("sentiment")
    counts = np.unique(classes, return_counts=True)[1]
    wanted = counts.max() if how == "oversample" else counts.min()
    assert data.sampler.sizes[1] == wanted * len(counts)
    assert trainer_arguments(recipe, prepared)["eval_every"] == -(
        -data.sampler.sizes.sum() // recipe.training.batch_size
    )
    rows = np.concatenate([plan.rows[plan.datasets == 1] for plan in data.sampler])[: data.sampler.sizes[1]]
    assert np.unique(classes[rows], return_counts=True)[1].tolist() == [wanted] * len(counts)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"oversample": "sentiment", "undersample": "sentiment"}, "choose one"),
        ({"oversample": "moood"}, "there is no task `moood`"),
        ({"oversample": "ner"}, "does not read this dataset"),
        ({"undersample": "sentiment", "streaming": True}, "not known before it is read"),
    ],
)
def test_what_cannot_be_balanced_is_told(tmp_path: Path, keys: dict[str, Any], told: str) -> None:
    given = values(tmp_path)
    given["datasets"]["texts"] |= keys
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(given)
