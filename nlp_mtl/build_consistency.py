"""Pairs of tasks whose labels are chosen together: what a recipe says of them, counted and weighed."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nlp_mtl.build_data import Prepared
from nlp_mtl.errors import DataError, Problem, RecipeError, did_you_mean, listed
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.task_types.consistency import association, only_allowed
from nlp_mtl.tasks import Task

logger = logging.getLogger(__name__)

CONSISTENCY_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Those that are tried where a recipe says ``auto``."""


def consistency(recipe: Recipe, prepared: Prepared) -> list[dict[str, Any]]:
    """The pairs of tasks whose labels are chosen together, as a model's configuration has them.

    Raises:
        DataError: no training row has both labels, so it cannot be counted which come together.
        RecipeError: a label does not exist.
    """
    known, found = {task.name: task for task in prepared.tasks}, []
    for place, spec in enumerate(recipe.consistency):
        first, second = (known[name] for name in spec.tasks)
        for label, others in spec.allowed.items():
            _check_label(f"consistency.{place}.allowed", first, label, kinds=True)
            for other in others:
                _check_label(f"consistency.{place}.allowed.{label}", second, other)
        table = np.zeros((len(first.labels), len(second.labels)))
        if spec.weight != 0:
            counts = [
                split.joint_counts(first, second)
                for split in prepared.split("train").values()
                if {first.name, second.name} <= {*split.tasks}
            ]
            if not np.sum(counts):
                raise DataError(
                    f"consistency of `{first.name}` and `{second.name}`: no training row that was read has labels of "
                    "both, so it cannot be counted which come together (streams are not counted). With `weight: 0` "
                    "only `allowed` counts"
                )
            table = association(np.sum(counts, axis=0))
        forbidden = np.argwhere(np.isneginf(only_allowed(first, second, spec.allowed))).tolist()
        weight = 0.0 if spec.weight == "auto" else spec.weight
        found.append({"tasks": spec.tasks, "weight": weight, "table": table.tolist(), "forbidden": forbidden})
    return found


def _check_label(key: str, task: Task, label: str, *, kinds: bool = False) -> None:
    labels = {*task.labels} | {one[2:] for one in task.labels if kinds and task.is_spans and one != "O"}
    if label not in labels:
        message = f"`{task.name}` has no label `{label}`; it has {listed(task.labels)}.{did_you_mean(label, labels)}"
        raise RecipeError([Problem(key, message)])


def settle_consistency(
    recipe: Recipe, prepared: Prepared, model: MultiTaskModel, score: Callable[[], Mapping[str, Scores]]
) -> None:
    """Set the weights of pairs of tasks that are ``auto`` to what gives the best scores.

    Args:
        score: scores the model on validation.
    """
    for place, spec in enumerate(recipe.consistency):
        if spec.weight != "auto":
            continue
        pair = (model.config.consistency or [])[place]
        found = {}
        for weight in CONSISTENCY_WEIGHTS:
            pair["weight"] = weight
            scores = score()
            tasks = [task for task in prepared.tasks if task.name in spec.tasks and task.name in scores]
            if not tasks:
                logger.warning("consistency of %s: no validation row has their labels: weight 0", listed(spec.tasks))
                break
            found[weight] = float(np.mean([scores[task.name][task.metric] for task in tasks]))
        pair["weight"] = max(found, key=lambda weight: (found[weight], -weight)) if found else 0.0
        logger.info(
            "consistency of %s: weight %g (mean score on validation %s)", listed(spec.tasks), pair["weight"],
            ", ".join(f"{weight:g}: {value:.4f}" for weight, value in found.items()),
        )  # fmt: skip
