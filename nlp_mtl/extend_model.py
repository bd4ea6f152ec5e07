"""The verb ``nlp-mtl extend``: a trained model gets more tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nlp_mtl.build_extension import Base
from nlp_mtl.extend_recipes import read_extension
from nlp_mtl.recipe import Recipe
from nlp_mtl.run import train_extended
from nlp_mtl.run_extension import check_apart


def extend(
    model: str | Path,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Add the tasks of a recipe to a trained model, train, evaluate and save it; returns what ``results.json`` holds.

    What is done against forgetting the old tasks, the recipe's ``extension`` says.

    Args:
        model: a run folder, a model folder or a Hub id.
        recipe: the new tasks and their datasets: the path of a file, plain values or a recipe. What the model fixes
            (encoder, words, cleaning, sharing) is left out.
        overrides: of a file's keys, ``key.key=value``.
        revision: branch, tag or commit of the model on the Hub.
        resume, overwrite: as in :func:`nlp_mtl.run.train`.

    Raises:
        RunStopped, NlpMtlError: as :func:`nlp_mtl.run.train`.
    """
    return extend_base(*read_extension(model, recipe, overrides, revision), resume=resume, overwrite=overwrite)


def extend_base(
    base: Base, recipe: Recipe, *, resume: bool | Literal["auto"] = False, overwrite: bool = False
) -> dict[str, Any]:
    """As :func:`extend`, of what :func:`nlp_mtl.extend_recipes.read_extension` gave."""
    check_apart(base, Path(recipe.output_dir))
    return train_extended(base, recipe, resume=resume, overwrite=overwrite)
