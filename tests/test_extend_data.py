"""The datasets of a trained model's tasks, in the recipe of a model that gets more: what of them is read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator
from extensions import OLD, changed, more_of_the_words, new_values, weights
from tiny_runs import streamed_values, values
from typed_runs import values as typed_values

from nlp_mtl import Recipe, RecipeError, extend, train
from nlp_mtl.build import steps
from nlp_mtl.build_data import prepare
from nlp_mtl.build_extended import old_lessons
from nlp_mtl.extend_recipes import read_extension
from nlp_mtl.run_folder import learned_changes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train(Recipe.from_dict(values(folder, max_steps=1)))
    return folder / "run"


def with_recipe(base: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run whose recipe says something else."""
    shutil.copytree(base, folder)
    file = folder / "recipe.yaml"
    given = yaml.safe_load(file.read_text())
    change(given)
    file.write_text(yaml.safe_dump(given))
    return folder


def problems(base: Path, given: dict[str, Any]) -> dict[str, str]:
    """``{path: message}`` of a recipe that is refused."""
    with pytest.raises(RecipeError) as error:
        read_extension(base, given)
    return {problem.path: problem.message for problem in error.value.problems}


def test_an_old_dataset_that_new_tasks_share_and_whose_rows_change_is_not_distilled(base: Path, tmp_path: Path) -> None:
    noisy = with_recipe(
        base, tmp_path / "noisy", lambda one: one["datasets"]["words"].update(augmentation={"word_dropout": 0.5})
    )
    given = more_of_the_words(noisy, tmp_path, {"distillation": True})
    told = problems(noisy, given)["extension.distillation"]
    assert told.startswith("the old model is asked of rows as they are, and the trained model's recipe says ")
    assert "`augmentation.word_dropout` of `words`" in told
    # Where no step draws from it, nobody is asked.
    read_extension(noisy, new_values(tmp_path, {"distillation": True}))
    shares = {"news": 1, "texts": 1, "words": 0}
    replayed = new_values(tmp_path, {"distillation": True, "replay": 3})
    assert "extension.distillation" in problems(noisy, replayed)
    read_extension(noisy, {**replayed, "sampling": {"strategy": "fixed", "shares": shares}})


def test_a_stream_that_new_tasks_share_is_not_distilled(tmp_path: Path) -> None:
    train(Recipe.from_dict(streamed_values(tmp_path, max_steps=1, eval_every=1)))
    given = new_values(tmp_path, {"distillation": True}, max_steps=2, eval_every=2)
    given["tasks"] = {"tone": {"type": "text-classification", "dataset": "texts", "labels": "label"}}
    given["tasks"]["tone"]["label_names"] = ["negative", "positive"]
    del given["datasets"]
    told = problems(tmp_path / "run", given)["extension.distillation"]
    assert "the trained model's recipe says `streaming` of `texts`" in told


def test_what_no_step_reads_is_no_reason_to_refuse(base: Path, tmp_path: Path) -> None:
    """Old datasets are there for evaluation, where nothing is replayed."""
    noisy = with_recipe(
        base, tmp_path / "noisy", lambda one: one["datasets"]["words"].update(augmentation={"word_dropout": 0.5})
    )
    kept = new_values(tmp_path, cache_features=True)
    taught = {**new_values(tmp_path), "distillation": {"teachers": {"topic": "a/b"}, "rows": "all"}}
    for given in (kept, taught):
        read_extension(noisy, given)
    kept["extension"] = {"replay": 3, "freeze": "model"}
    assert "datasets.words.augmentation" in problems(noisy, kept)
    taught["extension"] = {"replay": 3}
    assert "datasets.words.augmentation.word_dropout" in problems(noisy, taught)


def test_numbers_of_an_old_task_that_learns_nothing_need_no_scale(tmp_path: Path) -> None:
    train(Recipe.from_dict(typed_values(tmp_path, max_steps=1)))
    given = {**new_values(tmp_path), "balancing": {"scale": "log_classes"}}
    read_extension(tmp_path / "run", given)
    assert (
        "`rating` has numbers" in problems(tmp_path / "run", {**given, "extension": {"replay": 3}})["balancing.scale"]
    )


def test_a_hub_dataset_is_the_same_from_any_folder(base: Path, tmp_path: Path) -> None:
    on_hub = {"path": "stanfordnlp/sst2", "text": "text"}
    other = with_recipe(base, tmp_path / "other", lambda one: one["datasets"].update(texts=dict(on_hub)))
    given = new_values(tmp_path)
    given["datasets"]["texts"] = on_hub
    given["tasks"]["tone"] = {"type": "text-classification", "dataset": "texts", "labels": "label"}
    _, recipe = read_extension(other, given)
    assert recipe.datasets["texts"].path == "stanfordnlp/sst2"
    given["datasets"]["texts"] = {**on_hub, "revision": "v2"}
    assert problems(other, given)["datasets.texts"].startswith(
        "an old task reads another dataset of this name (revision"
    )


def test_rows_stay_held_out_whatever_else_is_said_of_a_dataset_that_goes_on(base: Path, tmp_path: Path) -> None:
    old = Recipe.from_yaml(base / "recipe.yaml")
    given = {**new_values(tmp_path), "split_seed": 9}
    given["tasks"] = {name: old.tasks[name].model_dump(mode="json") for name in OLD}
    spec = {**old.datasets["words"].model_dump(mode="json"), "data_dir": old.data_dir}
    texts = {**old.datasets["texts"].model_dump(mode="json"), "data_dir": old.data_dir}
    for more, is_same in (({}, True), ({"augmentation": {"typos": 0.1}}, True), ({"test_fraction": 0.3}, False)):
        given["datasets"] = {"words": {**spec, **more}, "texts": texts}
        _, recipe = read_extension(base, given)
        assert recipe.extension is not None
        assert ("words" in recipe.extension.old_splits) == is_same


def test_old_tasks_learn_from_what_is_drawn_of_theirs_however_little(base: Path, tmp_path: Path) -> None:
    shares = {"news": 2, "words": 1, "texts": 0}
    few = new_values(tmp_path, {"replay": 1})
    none = {**new_values(tmp_path, {"replay": 3}), "sampling": {"strategy": "fixed", "shares": shares}}
    for given, learned in ((few, [*OLD, "topic"]), (none, ["ner", "pos", "topic"])):
        model, recipe = read_extension(base, given)
        assert recipe.learned_tasks == learned
        prepared = prepare(recipe, **model.reading(), extends=True)
        data = steps(recipe, old_lessons(recipe, prepared, model, Accelerator(cpu=True)))
        assert [task.name for task in data.tasks] == learned
    extend(base, none)
    before, after = weights(base), weights(tmp_path / "extended")
    assert not [name for name in changed(before, after) if "sentiment_head" in name]


def test_where_all_tasks_go_on_a_frozen_model_keeps_its_encoder(base: Path, tmp_path: Path) -> None:
    old = Recipe.from_yaml(base / "recipe.yaml")
    for name, training in {"plain": {}, "kept": {"cache_features": True}}.items():
        given = new_values(tmp_path / name, {"freeze": "model"}, weight_decay=0.5, **training)
        given["tasks"] = {name: old.tasks[name].model_dump(mode="json") for name in OLD}
        given["datasets"] = {
            name: {**spec.model_dump(mode="json"), "data_dir": old.data_dir} for name, spec in old.datasets.items()
        }
        extend(base, given)
        found = changed(weights(base), weights(Path(given["output_dir"])))
        assert found
        assert all(one.startswith("heads.") for one in found)


def test_a_bare_model_may_lie_elsewhere_when_its_extension_is_resumed(base: Path, tmp_path: Path) -> None:
    recipes = []
    for place in ("one", "other"):
        shutil.copytree(base / "model", tmp_path / place)
        recipes.append(read_extension(tmp_path / place, new_values(tmp_path))[1].to_dict())
    assert recipes[0]["encoder"] != recipes[1]["encoder"]
    assert learned_changes(*recipes) == []
