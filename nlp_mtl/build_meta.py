"""From a recipe's ``meta`` to episodes, and how they are learned and scored."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from nlp_mtl.build import drawn_from, selecting_tasks, trainer_arguments
from nlp_mtl.build_augmentation import augmenters
from nlp_mtl.build_data import Prepared
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.episode_steps import EpisodeSteps
from nlp_mtl.data.episodes import EpisodeShape, EpisodeSource, learnable
from nlp_mtl.data.layout import MICRO_BATCH_COST
from nlp_mtl.data.rates import sampling_rates
from nlp_mtl.errors import DataError, Problem, RecipeError
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_parts import MetaSpec
from nlp_mtl.tasks import Task
from nlp_mtl.training.few_shot import few_shot_scores
from nlp_mtl.training.meta import InnerLoop, MetaGradients

logger = logging.getLogger(__name__)

OUTER_LEARNING_RATES = {"reptile": 1.0, "fomaml": 5e-5}
"""Where a recipe does not say. Reptile's authors go from 1 to 0; of FOMAML's AdamW, the rate is that of fine-tuning."""


def episode_steps(
    recipe: Recipe, prepared: Prepared, *, process: int = 0, num_processes: int = 1, device: str = "cpu"
) -> EpisodeSteps:
    """The steps of a meta run, laid out for one process.

    Raises:
        DataError: there is nothing to make episodes of.
    """
    meta, sampling = _meta(recipe), recipe.sampling
    train = {
        name: split for name, split in drawn_from(recipe, prepared).items()
        if isinstance(split, EncodedSplit) and learnable(prepared.tasks, split)
    }  # fmt: skip
    if not train or recipe.training.max_steps is None:
        raise DataError("no training rows have labels of a task with a loss weight, so there is nothing to learn")
    shares = [sampling.shares.get(name, 0) for name in train]
    # Rows of an episode that only fomaml reads need not be there under reptile.
    shape = EpisodeShape(meta.ways, meta.shots, meta.query if meta.algorithm == "fomaml" else 0)
    return EpisodeSteps(
        list(train.values()),
        prepared.tasks,
        prepared.framing,
        shape=shape,
        rates=sampling_rates([len(split) for split in train.values()], sampling.strategy, sampling.temperature, shares),
        num_steps=recipe.training.max_steps,
        episodes=meta.episodes,
        augmenters=augmenters(recipe, prepared, dict(train)),
        process=process,
        num_processes=num_processes,
        **_layout(recipe, device),
    )


def _layout(recipe: Recipe, device: str) -> dict[str, Any]:
    return {
        "inner_steps": _meta(recipe).inner_steps,
        "batch_size": recipe.training.batch_size,
        "seed": recipe.seed,
        "max_tokens": recipe.training.max_tokens,
        "micro_batch_cost": MICRO_BATCH_COST.get(device, MICRO_BATCH_COST["cuda"]),
    }


def meta_gradients(recipe: Recipe, prepared: Prepared, model: MultiTaskModel) -> MetaGradients:
    """What makes a recipe's meta steps."""
    meta = _meta(recipe)
    return MetaGradients(model, prepared.tasks, meta.algorithm, meta.episodes, inner_loop(recipe))


def inner_loop(recipe: Recipe) -> InnerLoop:
    """How a recipe's episodes are learned."""
    keys = {"learning_rate", "head_learning_rate", "weight_decay", "layer_decay", "max_grad_norm", "mixed_precision"}
    return InnerLoop(_meta(recipe).inner_optimizer, **recipe.training.model_dump(include=keys))


def meta_arguments(recipe: Recipe, prepared: Prepared, *, is_trial: bool = False) -> dict[str, Any]:
    """Arguments of :func:`nlp_mtl.training.trainer.train`, whose steps are the outer ones.

    The encoder is all that they move: by the mean of what episodes made of it (plain steps), or by AdamW. What keeps
    weights small belongs to the inner steps.

    Args:
        is_trial: it is known by its selection score.

    Raises:
        RecipeError: a model is to be selected by tasks, or at all, that have too few validation rows for an episode.
    """
    meta = _meta(recipe)
    rate = OUTER_LEARNING_RATES[meta.algorithm] if meta.outer_learning_rate is None else meta.outer_learning_rate
    outer = {
        "learning_rate": rate, "head_learning_rate": rate, "layer_decay": 1.0, "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "eval_every": recipe.training.eval_every or recipe.training.max_steps,
    }  # fmt: skip
    arguments = {**trainer_arguments(recipe, prepared), **outer, "plain_steps": meta.algorithm == "reptile"}
    _check_selection(recipe, prepared, is_trial)
    return arguments


def _check_selection(recipe: Recipe, prepared: Prepared, is_trial: bool) -> None:
    chosen, training = selecting_tasks(recipe, prepared), recipe.training
    unscored = [task for task in prepared.tasks if task.name in chosen and not _has_episodes(recipe, prepared, task)]
    needed = {f"training.selection_weights.{task.name}": bool(training.selection_weights) for task in unscored}
    if len(unscored) == len(chosen):
        needed |= {"training.early_stopping_patience": bool(training.early_stopping_patience), "meta.query": is_trial}
    each = _meta(recipe).shots + _meta(recipe).query
    message = (
        f"too few labels have {each} validation rows each (meta.shots and meta.query), so there are no episodes to "
        "choose a model by: lower meta.shots or meta.query"
    )
    if problems := [Problem(path, message) for path, is_needed in needed.items() if is_needed]:
        raise RecipeError(problems)


def _has_episodes(recipe: Recipe, prepared: Prepared, task: Task) -> bool:
    """Whether a task can be scored on validation."""
    for split in prepared.split("validation").values():
        if task.name in split.tasks:
            with suppress(DataError):
                EpisodeSource(split, task, _evaluated_shape(recipe))
                return True
    return False


def episode_scorer(
    recipe: Recipe, prepared: Prepared, accelerator: Accelerator, packed: bool
) -> Callable[[str, MultiTaskModel], dict[str, Scores]]:
    """How a model's ``{task: scores}`` on a split are found: by learning ``evaluated_episodes`` of its rows and being
    tried on others, always the same ones."""
    data = {split: _evaluated(recipe, prepared, split, accelerator, packed) for split in ("validation", "test")}
    inner = inner_loop(recipe)

    def score(split: str, model: MultiTaskModel) -> dict[str, Scores]:
        return {
            task.name: few_shot_scores(model, task, data[split][task.name], inner, accelerator)
            for task in prepared.tasks
            if data[split][task.name]
        }

    return score


def _evaluated(
    recipe: Recipe, prepared: Prepared, name: str, accelerator: Accelerator, packed: bool
) -> dict[str, list[EpisodeSteps]]:
    found: dict[str, list[EpisodeSteps]] = {}
    for task in prepared.tasks:
        found[task.name] = []
        for split in prepared.split(name).values():
            if task.name in split.tasks and split.labelled[task.name].any():
                try:
                    found[task.name].append(_episodes_of(recipe, prepared, task, split, accelerator, packed))
                except DataError as error:
                    logger.warning("Not scored: %s", error)
    return found


def _episodes_of(
    recipe: Recipe, prepared: Prepared, task: Task, split: EncodedSplit, accelerator: Accelerator, packed: bool
) -> EpisodeSteps:
    meta = _meta(recipe)
    return EpisodeSteps(
        [split],
        [replace(task, loss_weight=1.0)],
        prepared.framing,
        shape=_evaluated_shape(recipe),
        rates=[1.0],
        num_steps=meta.evaluated_episodes,
        episodes=1,
        packed=packed,
        **_layout(recipe, accelerator.device.type),
    )


def _evaluated_shape(recipe: Recipe) -> EpisodeShape:
    meta = _meta(recipe)
    return EpisodeShape(meta.ways, meta.shots, meta.query)


def describe_episodes(recipe: Recipe) -> dict[str, Any]:
    """What scores of a meta run are scores of, for ``results.json`` and ``check``."""
    return _meta(recipe).model_dump(exclude={"outer_learning_rate", "inner_optimizer"})


def _meta(recipe: Recipe) -> MetaSpec:
    assert recipe.meta is not None
    return recipe.meta
