"""What a run that extends a trained model does before training: scores of the old model, and weights that are held."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nlp_mtl.build_data import Prepared
from nlp_mtl.build_extension import Base
from nlp_mtl.errors import Problem, RecipeError, RunError, first_line, listed
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.storage import written_folder
from nlp_mtl.tasks import Task
from nlp_mtl.training.anchor import Anchor
from nlp_mtl.training.fisher import diagonal_fisher

logger = logging.getLogger(__name__)

FOLDER = "extension"
"""In a run folder: what was found before training, so that a resumed run need not, and cannot, find anything else."""

Score = Callable[[str, MultiTaskModel, Sequence[Task]], dict[str, Scores]]
"""Scores a model's tasks on a split."""


class Beginning(NamedTuple):
    """What is known before training."""

    told: dict[str, Any]
    """What ``results.json`` tells of the extension."""
    importance: dict[str, torch.Tensor]
    """The Fisher information of the old tasks; empty where it is not asked for."""
    anchor: Anchor | None
    """What draws weights back to where they started; None: nothing does."""


def refuse_extension(recipe: Recipe) -> None:
    """Refuse a recipe that extends a trained model where none is given.

    Raises:
        RecipeError: it does.
    """
    if recipe.extension is not None:
        message = "only `nlp-mtl extend MODEL RECIPE` reads it; `extension=null` starts from the encoder"
        raise RecipeError([Problem("extension", message)])


def check_apart(base: Base, output_dir: Path) -> None:
    """That a run does not write where the model is that it extends.

    Raises:
        RecipeError: it would.
    """
    if base.from_hub:
        return
    path, folder = Path(base.path), output_dir.resolve()
    if path in (folder, *folder.parents) or folder in path.parents:
        message = f"{output_dir} holds the model that is extended, or lies in its folder: choose another"
        raise RecipeError([Problem("output_dir", message)])


def begin_extension(
    base: Base,
    recipe: Recipe,
    prepared: Prepared,
    output_dir: Path,
    accelerator: Accelerator,
    score: Score,
    resume: bool,
) -> Beginning:
    """Score the old model, and find which of its weights are held; of a resumed run, read what it found.

    Args:
        prepared: all rows that are there, also those that are not replayed.

    Raises:
        RecipeError: the Fisher information is asked for, and no row tells it.
        RunError: the model is not the one that the run was started with, or what it found is damaged.
    """
    if resume:
        told, importance = _read(output_dir / FOLDER, base, recipe)
    else:
        on_device: nn.Module = base.model
        on_device.to(accelerator.device)
        told = {**_about(base, recipe), "before": _scores(base, prepared, score)}
        importance = _importance(base, recipe, prepared, accelerator)
        on_device.to("cpu")
    spec, anchor = recipe.extension, None
    if spec is not None and spec.l2_to_start:
        start = {name: parameter.detach() for name, parameter in base.model.named_parameters()}
        anchor = Anchor(start, spec.l2_to_start, importance if spec.importance == "fisher" else None)
    return Beginning(told, importance, anchor)


def keep_beginning(output_dir: Path, begun: Beginning) -> None:
    """Keep in a run folder what was found before training.

    Raises:
        RunError: it cannot be written.
    """
    with written_folder(output_dir / FOLDER) as partial:
        (partial / "extension.json").write_text(json.dumps(begun.told, indent=1) + "\n", encoding="utf-8")
        if begun.importance:
            save_file(begun.importance, partial / "importance.safetensors")


def _about(base: Base, recipe: Recipe) -> dict[str, Any]:
    """What was extended by what."""
    names = base.model.task_names
    return {
        "model": base.path,
        "revision": base.revision,
        "from_hub": base.from_hub,
        "weights_sha256": base.digest,
        "old_tasks": [*names],
        "new_tasks": [name for name in recipe.tasks if name not in names],
        "continued_tasks": [name for name in names if name in recipe.tasks and name not in recipe.old_tasks],
    }


def _scores(base: Base, prepared: Prepared, score: Score) -> dict[str, dict[str, Scores]]:
    """``{split: {task: scores}}`` of the old model, on the rows that the new one is scored on."""
    tasks = [task for task in prepared.tasks if task.name in base.model.task_names]
    if prepared.others:
        names = listed(task.name for task in prepared.others)
        logger.warning("Old tasks that are not scored before and after, as their data are not read: %s", names)
    found = {split: score(split, base.model, tasks) for split in ("validation", "test")} if tasks else {}
    return {split: scores for split, scores in found.items() if scores}


def _importance(base: Base, recipe: Recipe, prepared: Prepared, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    spec = recipe.extension
    if spec is None or spec.importance != "fisher":
        return {}
    tasks = [task for task in prepared.tasks if task.name in recipe.old_tasks]
    found = diagonal_fisher(
        base.model, [*prepared.split("train").values()], tasks, prepared.framing,
        num_rows=spec.fisher_rows, seed=recipe.seed, accelerator=accelerator,
        progress=sys.stderr.isatty() and accelerator.is_main_process,
    )  # fmt: skip
    if not found:
        message = f"no training row that was read has labels of {listed(recipe.old_tasks)}: leave it out"
        raise RecipeError([Problem("extension.importance", message)])
    return found


def _read(folder: Path, base: Base, recipe: Recipe) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    is_weighed = recipe.extension is not None and recipe.extension.importance == "fisher"
    try:
        told = json.loads((folder / "extension.json").read_text(encoding="utf-8"))
        importance = load_file(folder / "importance.safetensors") if is_weighed else {}
        started_with = told["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"{folder}, which a resumed run reads, is damaged ({first_line(error)}): start again, with --overwrite"
        ) from error
    if started_with != base.digest:
        raise RunError(
            f"the run was started with another model than that in {base.path}: its weights are others. Bring back "
            "those that it was started with, or start again, with --overwrite"
        )
    return {**told, "model": base.path, "revision": base.revision, "from_hub": base.from_hub}, importance
