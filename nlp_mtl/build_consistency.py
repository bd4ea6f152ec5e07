"""Pairs of tasks whose labels are chosen together: what a recipe says of them, counted and weighed."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from nlp_mtl.build_data import Prepared
from nlp_mtl.errors import DataError, Problem, RecipeError, did_you_mean, listed
from nlp_mtl.inference.onnx import OnnxModel
from nlp_mtl.metrics import Scores
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_parts import ConsistencySpec
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
        forbidden = _forbidden(f"consistency.{place}.allowed", spec, first, second)
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
        weight = 0.0 if spec.weight == "auto" else spec.weight
        found.append({"tasks": spec.tasks, "weight": weight, "table": table.tolist(), "forbidden": forbidden})
    return found


def is_another(recipe: Recipe, config: MultiTaskConfig) -> bool:
    """Whether a recipe says something else of it than a trained model was told; one that says nothing does not.

    Raises:
        RecipeError: a label does not exist.
    """
    own = [one for one in config.consistency or [] if {*one["tasks"]} <= {*recipe.tasks}]
    if "consistency" not in recipe.model_fields_set:
        return False
    if [spec.tasks for spec in recipe.consistency] != [one["tasks"] for one in own]:
        return True
    known = {task.name: task for task in config.task_list()}
    for place, (spec, one) in enumerate(zip(recipe.consistency, own, strict=True)):
        first, second = (known[name] for name in spec.tasks)
        forbidden = _forbidden(f"consistency.{place}.allowed", spec, first, second)
        if spec.weight not in ("auto", one["weight"]) or forbidden != one["forbidden"]:
            return True
    return False


def known_pairs(config: MultiTaskConfig, tasks: Collection[str]) -> list[dict[str, Any]]:
    """What a recipe says of the pairs that a trained model has, as they were settled.

    Args:
        tasks: those of the recipe; a pair of others is left out.
    """
    known, found = {task.name: task for task in config.task_list()}, []
    for one in config.consistency or []:
        if not {*one["tasks"]} <= {*tasks}:
            continue
        first, second = (known[name] for name in one["tasks"])
        forbidden = {(first.labels[i], second.labels[j]) for i, j in one["forbidden"]}
        allowed = {
            label: [other for other in second.labels if (label, other) not in forbidden]
            for label in first.labels if any(label == ruled for ruled, _ in forbidden)
        }  # fmt: skip
        found.append({"tasks": one["tasks"], "weight": one["weight"], "allowed": allowed})
    return found


def _forbidden(key: str, spec: ConsistencySpec, first: Task, second: Task) -> list[list[int]]:
    """Pairs of labels that are never chosen together, by their ids."""
    for label, others in spec.allowed.items():
        _check_label(key, first, label, kinds=True)
        for other in others:
            _check_label(f"{key}.{label}", second, other)
    found: list[list[int]] = np.argwhere(np.isneginf(only_allowed(first, second, spec.allowed))).tolist()
    return found


def _check_label(key: str, task: Task, label: str, *, kinds: bool = False) -> None:
    labels = {*task.labels} | {one[2:] for one in task.labels if kinds and task.is_spans and one != "O"}
    if label not in labels:
        message = f"`{task.name}` has no label `{label}`; it has {listed(task.labels)}.{did_you_mean(label, labels)}"
        raise RecipeError([Problem(key, message)])


def settle_consistency(
    recipe: Recipe, prepared: Prepared, model: MultiTaskModel | OnnxModel, score: Callable[[], Mapping[str, Scores]]
) -> None:
    """Set the weights of pairs of tasks that are ``auto`` to what gives the best scores.

    Args:
        score: scores the model on validation.
    """
    for spec in recipe.consistency:
        if spec.weight != "auto":
            continue
        pair = next(one for one in model.config.consistency or [] if one["tasks"] == spec.tasks)
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
