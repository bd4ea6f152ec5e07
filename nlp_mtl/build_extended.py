"""A trained model with a recipe's new tasks: what of it learns, and what it learns of old tasks."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from nlp_mtl.build_consistency import consistency
from nlp_mtl.build_data import Prepared
from nlp_mtl.build_extension import Base
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.encoding import encode_split
from nlp_mtl.errors import Problem, RecipeError, listed
from nlp_mtl.inference.teaching import with_soft_targets
from nlp_mtl.models.extending import extended
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.sharing import is_own
from nlp_mtl.recipe import Recipe
from nlp_mtl.tasks import Task
from nlp_mtl.training.freezing import keep

logger = logging.getLogger(__name__)


def extended_model(recipe: Recipe, prepared: Prepared, base: Base) -> MultiTaskModel:
    """A trained model with the recipe's new tasks, whose heads are initialized from torch's global seed.

    Args:
        recipe: of both; see :func:`nlp_mtl.build_extension.read_extension`.

    Raises:
        ModelError: with its ``sharing``, a task more would change old answers.
        DataError: labels of two tasks should be chosen together, and no training row has both.
        RecipeError: a label in ``consistency`` does not exist.
    """
    known = {task.name: task for task in prepared.tasks}
    tasks = [known[task.name] if _goes_on(recipe, task.name) else task for task in base.tasks]
    tasks += [task for task in prepared.tasks if task.name not in base.model.task_names]
    pairs: list[dict[str, Any]] = list(base.model.config.consistency or [])
    settled = [pair["tasks"] for pair in pairs]
    new = recipe.model_copy(update={"consistency": [one for one in recipe.consistency if one.tasks not in settled]})
    return extended(
        base.model, tasks, consistency=[*pairs, *consistency(new, prepared)], dropout=recipe.training.dropout
    )


def keep_old(recipe: Recipe, model: MultiTaskModel, base: Base) -> None:
    """Take out of training what the recipe's ``extension.freeze`` keeps, and what no step has a say in."""
    read_by, old = model.readers(), {name for name, _ in base.model.named_parameters()}
    goes_on = {name for name in base.model.task_names if _goes_on(recipe, name)}
    staying = {*base.model.task_names} - goes_on
    freeze = recipe.extension.freeze if recipe.extension is not None else "nothing"
    learned = {*recipe.learned_tasks, *_distilled(recipe)}
    kept = {name for name, readers in read_by.items() if not readers & learned}
    for name in old if freeze != "nothing" else ():
        # Under `model` only what a task has for itself is its own to change, if it goes on learning.
        if read_by[name] <= staying or (freeze == "model" and not (is_own(name) and read_by[name] <= goes_on)):
            kept.add(name)
    keep(model, kept)


def learned_tasks(recipe: Recipe, prepared: Prepared) -> list[Task]:
    """The tasks that steps learn, from labels or from the old model; others are there to be evaluated."""
    names = {*recipe.learned_tasks, *_distilled(recipe)}
    factor = recipe.extension.old_weight if recipe.extension is not None else 1.0
    old = {*recipe.old_tasks, *(task.name for task in prepared.others)}
    return [
        replace(task, loss_weight=task.loss_weight * factor) if task.name in old else task
        for task in [*prepared.tasks, *prepared.others] if task.name in names
    ]  # fmt: skip


def old_lessons(recipe: Recipe, prepared: Prepared, base: Base, accelerator: Accelerator) -> Prepared:
    """With the rows of old datasets that are replayed, and with what the old model says of all rows.

    Raises:
        RecipeError: old tasks should learn from the old model, and read other texts than there are.
    """
    encoded = {
        name: {split: _replayed(recipe, name, rows) if split == "train" else rows for split, rows in splits.items()}
        for name, splits in prepared.encoded.items()
    }
    names = _distilled(recipe)
    tasks = [task for task in [*prepared.tasks, *prepared.others] if task.name in names]
    asked: set[str] = set()
    on_device: nn.Module = base.model
    on_device.to(accelerator.device)
    for dataset, splits in encoded.items() if tasks else ():
        has_pairs = bool(recipe.datasets[dataset].text_pair)
        fitting = [task for task in tasks if task.pairs == has_pairs]
        if "train" in splits and recipe.draws_from(dataset) and fitting:
            encoded[dataset] = {**splits, "train": _taught(recipe, prepared, base, dataset, splits["train"], fitting)}
            asked |= {task.name for task in fitting}
    on_device.to("cpu")
    if unasked := [name for name in names if name not in asked]:
        message = (
            f"{listed(unasked)} cannot be distilled: it reads pairs of texts, or single ones, and the datasets that "
            "are learned from hold none. Name those that can be, `distillation: [...]`"
        )
        raise RecipeError([Problem("extension.distillation", message)])
    return replace(prepared, encoded=encoded)


def _taught(
    recipe: Recipe, prepared: Prepared, base: Base, dataset: str, train: EncodedSplit, tasks: Sequence[Task]
) -> EncodedSplit:
    """Training rows with what the old model says of them."""
    learned = {name: type for name, type in train.tasks.items() if name in recipe.learned_tasks}
    names = listed(task.name for task in tasks)
    loaded = replace(prepared.loaded[dataset], splits={"train": train.source})
    return with_soft_targets(
        replace(train, tasks=learned),  # of others, labels that happen to be there are none of theirs
        encode_split(loaded, "train", [], prepared.tokenizer, recipe.word_splitter, recipe.num_proc),
        base.model,
        prepared.framing,
        tasks,
        teacher_id=base.digest,
        beyond_labels=True,
        max_tokens=max(recipe.training.max_tokens, prepared.framing.max_length),
        mixed_precision=recipe.training.mixed_precision,
        title=f"{names} on {dataset}",
    )


def _replayed(recipe: Recipe, dataset: str, train: EncodedSplit) -> EncodedSplit:
    """The training rows of an old dataset that are learned from, drawn by the seed; all of any other."""
    replay = None if recipe.extension is None else recipe.extension.replay
    if replay is None or replay == "all" or dataset not in recipe.old_datasets:
        return train
    wanted = min(replay, len(train)) if isinstance(replay, int) else max(1, round(replay * len(train)))
    seed = [recipe.seed, 5, [*recipe.datasets].index(dataset)]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:wanted])
    logger.info("%s: %d of %d training rows are replayed", dataset, wanted, len(train))
    return replace(train, source=train.source.take(chosen), rows=train.rows.select(chosen))


def _distilled(recipe: Recipe) -> list[str]:
    return recipe.extension.distilled if recipe.extension is not None else []


def _goes_on(recipe: Recipe, task: str) -> bool:
    """Whether the recipe names an old task itself."""
    return task in recipe.tasks and task not in recipe.old_tasks
