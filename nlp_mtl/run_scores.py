"""How a run scores models, while it trains and before and after."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from nlp_mtl.build_data import Prepared
from nlp_mtl.build_features import keep_features
from nlp_mtl.build_meta import episode_scorer
from nlp_mtl.data.kept_states import KeptStates
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.evaluation import evaluate
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.tasks import Task

Score = Callable[[str, MultiTaskModel], dict[str, Scores]]
"""Takes a split and a model: ``{task: scores}``."""


def scorer(
    recipe: Recipe, prepared: Prepared, model: MultiTaskModel, data: StepDataset, accelerator: Accelerator
) -> Score:
    """How models are scored while they are trained, and at the end."""
    if recipe.meta is not None:
        return episode_scorer(recipe, prepared, accelerator, data.packed)
    kept = keep_features(recipe, prepared, model, data, accelerator)

    def score(split: str, scored: MultiTaskModel) -> dict[str, Scores]:
        states = kept if split == "validation" else None
        return score_split(recipe, prepared, data.packed, accelerator, split, scored, prepared.tasks, states)

    return score


def score_split(
    recipe: Recipe,
    prepared: Prepared,
    packed: bool,
    accelerator: Accelerator,
    split: str,
    model: MultiTaskModel,
    tasks: Sequence[Task],
    kept: Mapping[str, KeptStates] | None = None,
) -> dict[str, Scores]:
    """Scores of a model's tasks on a split."""
    options = asking(recipe, packed, accelerator)
    return evaluate(model, prepared.split(split), tasks, prepared.framing, kept=kept, **options)


def asking(recipe: Recipe, packed: bool, accelerator: Accelerator) -> dict[str, Any]:
    """How models are asked for labels: options of :func:`nlp_mtl.evaluation.answer`."""
    return {
        "max_tokens": recipe.training.max_tokens,
        "packed": packed,
        "mixed_precision": recipe.training.mixed_precision,
        "accelerator": accelerator,
        "progress": sys.stderr.isatty() and accelerator.is_main_process,
    }
