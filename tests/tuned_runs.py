"""Searches of a tiny recipe."""

import csv
from pathlib import Path
from typing import Any

from tiny_runs import values

from nlp_mtl import Recipe

WEIGHT, RATE, HEADS = "tasks.ner.loss_weight", "training.learning_rate", "training.head_learning_rate"
SMALL_GRID = {"method": "grid", "prune": False, "search": {WEIGHT: [0.5, 2], RATE: "1e-3..4e-3:log:2"}}
TWO_RATES = {"trials": 2, "search": {RATE: "1e-3..8e-3:log", HEADS: "5e-3..5e-2:log"}}


def recipe_values(folder: Path, tuned: dict[str, Any], **training: Any) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 9, "max_steps": 4, "eval_every": 2, **training})
    return {**given, "tune": tuned}


def recipe_of(folder: Path, tuned: dict[str, Any], **training: Any) -> Recipe:
    return Recipe.from_dict(recipe_values(folder, tuned, **training))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "trials").iterdir())


def at(recipe: Recipe, output_dir: Path, **tuned: Any) -> Recipe:
    assert recipe.tune is not None
    return recipe.model_copy(update={"output_dir": str(output_dir), "tune": recipe.tune.model_copy(update=tuned)})
