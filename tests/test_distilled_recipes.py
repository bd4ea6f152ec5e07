"""Recipes with teachers: what is refused, and what other verbs make of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from taught_runs import distilled, trained_teacher
from typed_runs import values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build_data import prepare
from nlp_mtl.compare_recipes import budget, part_recipe
from nlp_mtl.hub.portable import portable_recipe
from nlp_mtl.run_check import check
from nlp_mtl.search_space import with_values


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model of a task of each type."""
    return trained_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"distillation": {"teachers": {"posi": "x/y"}}},
            r"distillation\.teachers\.posi.*no such task.*Did you mean `pos`",
        ),
        ({"distillation": {"teachers": {}}}, r"distillation\.teachers"),
        ({"distillation": {"teachers": {"pos": "x/y"}, "revisions": {"tags": "v1"}}}, r"revisions\.tags.*no teacher"),
        (
            {"distillation": {"teachers": {"rating": "x/y"}, "temperature": 2}},
            r"distillation\.temperature: numbers have",
        ),
        ({"distillation": {"teachers": {"pos": "x/y"}, "weight": 0}}, r"distillation\.weight"),
        ({"distillation": {"teachers": {"pos": "x/y"}}, "output_dir": "x"}, r"teachers\.pos: it lies in `output_dir`"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_loaded(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(values(tmp_path) | change)


@pytest.mark.parametrize(
    ("section", "change", "told"),
    [
        ("tasks.pos", {"decoder": "crf"}, r"tasks\.pos\.decoder: a chain learns whole sequences"),
        (
            "datasets.words",
            {"augmentation": {"typos": 0.1}},
            r"datasets\.words\.augmentation\.typos: teachers are asked",
        ),
        ("datasets.words", {"streaming": True}, r"datasets\.words\.streaming: teachers are asked of all rows"),
        ("tasks.pos", {"loss_weight": 0}, r"tasks\.pos\.loss_weight: a task that does not count learns nothing"),
        ("tasks.pos", {"label_smoothing": 0.1}, r"tasks\.pos\.label_smoothing: it changes the loss of labels"),
    ],
)
def test_what_teachers_cannot_be_asked_is_told(tmp_path: Path, section: str, change: dict[str, Any], told: str) -> None:
    given = values(tmp_path) | {"distillation": {"teachers": {"pos": "x/y"}, "annealing": False}}
    part, name = section.split(".")
    given[part][name] |= change
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(given)


def test_a_teacher_that_does_not_fit_is_told_by_check_and_train(tmp_path: Path, teacher: Path) -> None:
    given = distilled(tmp_path, teacher)
    given["tasks"]["sentiment"]["label_map"] = {"negative": "bad"}
    given["tasks"]["parts"] = given["tasks"].pop("pos")
    given["distillation"]["teachers"]["parts"] = given["distillation"]["teachers"].pop("pos")
    for verb in (check, train):
        with pytest.raises(RecipeError) as caught:
            verb(Recipe.from_dict(given))
        told = str(caught.value)
        assert "distillation.teachers.parts: " in told
        assert "has no task `parts`; it has" in told
        assert "lacks the labels `bad` and has the labels `negative`" in told
    given = distilled(tmp_path, tmp_path / "none")
    given["distillation"]["teachers"]["tags"] = given["encoder"]
    with pytest.raises(RecipeError) as caught:
        check(Recipe.from_dict(given))
    assert f"distillation.teachers.pos: `{tmp_path / 'none'}`: there is no such folder" in str(caught.value)
    assert "distillation.teachers.rating" in str(caught.value)
    assert f"distillation.teachers.tags: `{given['encoder']}` is a stock model" in str(caught.value)


def test_what_others_see_of_a_recipe_names_no_folder_of_this_machine(tmp_path: Path, teacher: Path) -> None:
    recipe = Recipe.from_dict(distilled(tmp_path, teacher))
    assert str(tmp_path) not in json.dumps(portable_recipe(recipe.to_dict(), "distilled"))
    assert str(teacher.parent) not in json.dumps(portable_recipe(recipe.to_dict(), "distilled"))


def test_part_recipes_of_a_comparison_keep_the_teachers_of_their_tasks(tmp_path: Path, teacher: Path) -> None:
    recipe = Recipe.from_dict(distilled(tmp_path, teacher, temperature=2, rows="all"))
    plan = budget(recipe, prepare(recipe))
    parts = {group: part_recipe(recipe, group, plan, tmp_path / "part") for group in [("pos",), ("pos", "tags")]}
    assert parts["pos",].distillation is None
    both = parts["pos", "tags"].distillation
    assert both is not None
    assert {*both.teachers} == {"pos", "tags"}
    assert both.temperature == 2
    numbers = Recipe.from_dict(distilled(tmp_path, teacher, temperature=2) | {"tasks": dict(recipe.to_dict()["tasks"])})
    numbers.distillation.teachers.pop("pos"), numbers.distillation.teachers.pop("tags")
    part = part_recipe(numbers, ("rating", "pos"), plan, tmp_path / "part").distillation
    assert part is not None
    assert (part.temperature, {*part.teachers}) == (1, {"rating"})


def test_a_search_over_teachers_that_there_are_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"distillation\.teachers"):
        with_values(Recipe.from_dict(values(tmp_path)), {"distillation.weight": 0.5})
