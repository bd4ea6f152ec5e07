"""Recipes stay the same on their way through files."""

import copy

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from recipe_values import VALUES

from nlp_mtl import Recipe
from nlp_mtl.recipe import DatasetSpec, SamplingSpec, TaskSpec, TrainingSpec

# What YAML would read as something else, and any other text (PyYAML does not keep the Unicode line separators).
TRAPS = ["no", "on", "null", "5e-5", "12", "1:30", "2024-01-01", "~", "#x", " x ", "a: b", "\t", "a\nb", "é人🙂"]
TEXTS = st.sampled_from(TRAPS) | st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8)


NAMES = {
    "path",
    "text",
    "text_pair",
    "tokens",
    "delimiter",
    "label_names",
    "oversample",
    "undersample",
}  # held against other keys


def sections(model):
    """A strategy of values for some keys of a section, of the right types."""
    by_type = {"str | None": TEXTS | st.none(), "list[str] | None": st.lists(TEXTS, max_size=3) | st.none()}
    keys = {
        name: by_type[str(field.annotation)]
        for name, field in model.model_fields.items()
        if str(field.annotation) in by_type and name not in NAMES
    }
    assert keys
    return st.fixed_dictionaries({}, optional=keys)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dataset=sections(DatasetSpec),
    label_map=st.dictionaries(st.sampled_from(["no", "1", "é", "a"]), TEXTS),
    rate=st.floats(1e-9, 1e9),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_recipe_comes_back_equal_from_the_file_it_is_written_to(tmp_path, dataset, label_map, rate, seed):
    values = copy.deepcopy(VALUES)
    values["datasets"]["words"].update(dataset, path="json")
    values["tasks"]["ner"]["label_map"] = label_map
    values.update(seed=seed, training={"learning_rate": rate})
    recipe = Recipe.from_dict(values)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(path) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_dict()


def test_the_written_recipe_holds_every_default():
    written = yaml.safe_load(Recipe.from_dict(VALUES).to_yaml())

    def holds(values, model):
        assert set(values) == set(model.model_fields), model.__name__

    holds(written, Recipe)
    holds(written["training"], TrainingSpec)
    holds(written["sampling"], SamplingSpec)
    holds(written["datasets"]["words"], DatasetSpec)
    holds(written["tasks"]["ner"], TaskSpec)
    assert issubclass(Recipe, BaseModel)
