"""From a recipe to what is changed of its tasks' losses."""

from collections.abc import Mapping, Sequence

import numpy as np

from nlp_mtl.data.encoded_splits import EncodedSplit, Split
from nlp_mtl.errors import DataError, did_you_mean, listed
from nlp_mtl.recipe import TaskSpec
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import LossShape, Task


def loss_shape(task: Task, spec: TaskSpec, train: Mapping[str, Split]) -> LossShape:
    """What a recipe changes of a task's loss.

    Args:
        train: the training rows of the datasets that it reads.

    Raises:
        DataError: ``class_weights`` names a label that there is not, or needs counts that nobody knows.
    """
    weights: tuple[float, ...] = ()
    if isinstance(spec.class_weights, dict):
        for label in spec.class_weights:
            if label not in task.labels:
                raise DataError(
                    f"tasks.{task.name}.class_weights: there is no label `{label}`; there are {listed(task.labels)}."
                    f"{did_you_mean(label, task.labels)}"
                )
        weights = tuple(float(spec.class_weights.get(label, 1.0)) for label in task.labels)
    elif spec.class_weights == "balanced":
        splits = [split for split in train.values() if isinstance(split, EncodedSplit)]
        if streamed := [name for name, split in train.items() if not isinstance(split, EncodedSplit)]:
            raise DataError(
                f"tasks.{task.name}.class_weights: nobody knows how often labels occur in {listed(streamed)}, which is "
                "streamed; give weights, `{label: weight}`"
            )
        weights = balanced_weights(task, splits)
    return LossShape(weights, spec.focal_gamma, spec.label_smoothing)


def balanced_weights(task: Task, splits: Sequence[EncodedSplit]) -> tuple[float, ...]:
    """Weights with which all labels count alike in sum, and items 1 on average; 1 for labels that do not occur.

    Of several labels a text, each label's for itself: where it holds counts as much as where it does not.
    """
    counts = np.sum([np.zeros(len(task.labels)), *(split.label_counts(task) for split in splits)], axis=0)
    there = counts > 0
    if kind_of(task).label_set == "many":
        texts = sum(int(split.labelled[task.name].sum()) for split in splits)
        weights = np.where(there, (texts - counts) / np.maximum(counts, 1), 1.0)
        weights = np.where(weights > 0, weights, 1.0)
    else:
        weights = np.where(there, counts.sum() / (max(there.sum(), 1) * np.maximum(counts, 1)), 1.0)
    return tuple(float(weight) for weight in weights)
