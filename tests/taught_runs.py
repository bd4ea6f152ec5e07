"""Recipes whose tasks learn from a trained model, and what they make of their data."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from typed_runs import values

from nlp_mtl import Recipe, train
from nlp_mtl.build import steps
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.build_distillation import taught
from nlp_mtl.data.steps import StepDataset

TASKS = ("pos", "rating", "sentiment", "tags")


def trained_teacher(folder: Path) -> Path:
    """A run folder with a model of a task of each type."""
    train(Recipe.from_dict(values(folder, num_epochs=4)))
    return folder / "run"


def distilled(
    folder: Path, teacher: Path | str, training: dict[str, Any] | None = None, **section: Any
) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 2, **(training or {})})
    return given | {"distillation": {"teachers": dict.fromkeys(TASKS, str(teacher)), **section}}


def change_rows(given: dict[str, Any], dataset: str, change: Any) -> None:
    """Rewrite the training rows of a corpus."""
    file = Path(given["data_dir"]) / dataset / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(place, row)) + "\n" for place, row in enumerate(rows)))


def taught_data(given: dict[str, Any], **options: Any) -> tuple[Prepared, StepDataset]:
    recipe = Recipe.from_dict(given)
    prepared = taught(recipe, prepare(recipe), Accelerator(cpu=True))
    return prepared, steps(recipe, prepared, **options)
