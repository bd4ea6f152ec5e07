"""Searches for label errors in tiny data, and other calls for them."""

from pathlib import Path
from typing import Any

import pytest
from planted import planted

from nlp_mtl import NlpMtlError, Recipe
from nlp_mtl.build_data import prepare
from nlp_mtl.cli import main
from nlp_mtl.label_errors import label_errors

Made = tuple[dict[str, Any], Path, dict[str, Any]]
"""A recipe's values, the folder of its search, and its report."""

ASKED: dict[str, Any] = {"folds": 3, "share": 0.2}


def searched(folder: Path) -> Made:
    """A search that is made, with a review; its models have learned little."""
    given, _ = planted(folder, train=40, num_epochs=1)
    return given, *label_errors(Recipe.from_dict(given), **ASKED, review=True)


def again(made: Made, **options: Any) -> dict[str, Any]:
    """The report of another call for the same search."""
    given, folder, _ = made
    return label_errors(Recipe.from_dict(given), **{**ASKED, "output_dir": folder, **options})[1]


def new_data(made: Made, **options: Any) -> dict[str, Any]:
    """What another call for the same search writes, with ``errors``."""
    report = again(made, **options)
    return {**report["written"], "errors": report.get("errors")}


def told(recipe: Recipe, **options: Any) -> str:
    """Why a search is not made."""
    with pytest.raises(NlpMtlError) as error:
        label_errors(recipe, **options)
    return str(error.value)


def command(*arguments: object) -> int:
    """How the command ends."""
    with pytest.raises(SystemExit) as exit_:
        main(["label-errors", *map(str, arguments)])
    return int(exit_.value.code or 0)


def train_rows(recipe: Recipe, dataset: str) -> list[dict[str, Any]]:
    """The training rows that a recipe learns from, as it reads them."""
    return [*prepare(recipe).loaded[dataset].splits["train"].rows]
