"""From a recipe's ``cleaning`` to what is done to texts: those of a dataset, and those of prediction."""

from dataclasses import fields, replace
from typing import Any

from nlp_mtl.cleaning.cleaning import NOTHING, Cleaning
from nlp_mtl.cleaning.steps import stop_words_of
from nlp_mtl.data.row_filter import RowFilter
from nlp_mtl.errors import Problem, RecipeError
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_cleaning import CleaningSpec

_PLAIN: dict[str, Any] = {field.name: field.default for field in fields(Cleaning)}
_FILTER = {field.name for field in fields(RowFilter)}


def model_cleaning(recipe: Recipe) -> Cleaning:
    """What is done to texts at prediction, and to those of all datasets that do not differ: the recipe's own
    ``cleaning``; without one, what all datasets say alike.

    Raises:
        RecipeError: there are no stop words of a language.
        MissingExtraError: stopwordsiso is not installed.
    """
    found = _changed(NOTHING, recipe.cleaning, "cleaning")
    if found != NOTHING:
        return found
    first, *_ = recipe.datasets
    return dataset_cleaning(recipe, first, NOTHING)


def dataset_cleaning(recipe: Recipe, dataset: str, base: Cleaning) -> Cleaning:
    """What is done to the texts of a dataset; ``base``: to those of datasets that do not differ."""
    return _changed(base, recipe.datasets[dataset].cleaning, f"datasets.{dataset}.cleaning")


def row_filter(recipe: Recipe, dataset: str) -> RowFilter:
    """Which training rows of a dataset are left out."""
    return RowFilter(**recipe.datasets[dataset].cleaning.model_dump(include=_FILTER))


def _changed(base: Cleaning, spec: CleaningSpec, path: str) -> Cleaning:
    given = {key: value for key, value in spec.model_dump(exclude=_FILTER).items() if value is not None}
    words = given.get("remove_stop_words")
    if isinstance(words, str):
        try:
            given["remove_stop_words"] = stop_words_of(words)
        except ValueError as error:
            raise RecipeError([Problem(f"{path}.remove_stop_words", str(error))]) from error
    if words:
        given["remove_stop_words"] = tuple(given["remove_stop_words"])
    return replace(base, **{key: _PLAIN[key] if value is False else value for key, value in given.items()})
