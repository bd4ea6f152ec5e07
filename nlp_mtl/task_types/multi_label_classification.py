"""Any number of labels for each text, each of which holds or not: emotions, tags."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_mtl.errors import DataError
from nlp_mtl.metrics import Scores, set_scores
from nlp_mtl.task_types.kind import Decision, Reader, Target, TaskKind
from nlp_mtl.task_types.losses import indicator_divergences, indicator_losses
from nlp_mtl.task_types.probabilities import each_row, sigmoid, stacked
from nlp_mtl.tasks import MISSING, PLAIN_LOSS, LossShape, Metric, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor

THRESHOLD = 0.5
"""A label of a higher probability is answered: what its binary cross-entropy was learned for."""


def default_metric(labels: Sequence[str]) -> Metric:
    """Micro F1."""
    return "micro_f1"


def target(reader: Reader, cell: Any, num_words: int, where: Callable[[], str]) -> Target:
    """A 0 or 1 for each label of the set. A null has no target; an empty list has one: no label holds."""
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise DataError(f"task `{reader.task}`: {where()} has {cell!r:.60}; expected a list of labels")
    place = None
    try:
        if reader.indicators:
            cell = _named(reader, cell, where)
        elif (twice := _repeated_number(cell)) is not None:
            raise DataError(
                f"task `{reader.task}`: {where()} has {twice} more than once in {cell!r:.60}, so it is no list of ids. "
                "Lists of a 0 or 1 for each label all have as many as there are names in `label_names`, in all splits: "
                "write null for a row without labels, or leave a split out (`splits: {test: null}`)"
            )
        ids = [reader(place := value) for value in cell]
    except KeyError as error:
        raise reader.unknown(place, where()) from error
    if MISSING in ids:
        if set(ids) == {MISSING}:
            return []
        raise DataError(f"task `{reader.task}`: {where()} has labels and says that it has none: {cell}")
    found = [0] * len(reader.labels)
    for one in ids:
        found[one] = 1
    return found


def _repeated_number(cell: Sequence[Any]) -> int | float | None:
    """A number that a list of ids would not have more than once."""
    numbers = [value for value in cell if isinstance(value, int | float) and value not in (-1, MISSING)]
    return next((value for value in numbers if numbers.count(value) > 1), None)


def _named(reader: Reader, cell: Sequence[Any], where: Callable[[], str]) -> list[int]:
    """The places of the ones in a list of 0 and 1."""
    if cell and all(value in (-1, MISSING) for value in cell):
        return [MISSING]
    if len(cell) != reader.indicators:
        raise DataError(
            f"task `{reader.task}`: {where()} has {len(cell)} values; expected {reader.indicators}, a 0 or 1 for each "
            "label, as the rows before have (null for a row without labels)"
        )
    odd = [value for value in cell if value not in (0, 1)]
    if odd:
        raise DataError(f"task `{reader.task}`: {where()} has {odd[0]!r} in a list of 0 and 1, one for each label")
    return [place for place, value in enumerate(cell) if value]


def tensor(targets: Sequence[Target]) -> "Tensor":
    """[r, labels] zeros and ones; [0, 0] where there are no targets."""
    import torch

    return torch.tensor(targets, dtype=torch.float32).reshape(len(targets), -1 if targets else 0)


def summed_loss(logits: "Tensor", targets: "Tensor", weights: "Tensor", shape: LossShape = PLAIN_LOSS) -> "Tensor":
    """Binary cross-entropy, summed over labels: each is a question of its own. ``logits``: [r, labels]."""
    losses = indicator_losses(logits, targets.reshape(logits.shape), shape)
    return (losses.sum(-1) * weights).sum()


def drawn(logits: "Tensor", targets: "Tensor", generator: "Generator") -> "Tensor":
    """[r, labels] zeros and ones, each label's for itself."""
    return logits.sigmoid().bernoulli(generator=generator)


def guess_loss(task: Task) -> float:
    """A coin for each label."""
    return len(task.labels) * math.log(2)


def decide(task: Task, logits: Sequence[np.ndarray], transitions: np.ndarray | None = None) -> list[Decision]:
    """1 where a label holds."""
    scores = sigmoid(stacked(logits))
    return each_row((scores > THRESHOLD).astype(np.int32), scores)


def compared(task: Task, target: np.ndarray, chosen: np.ndarray) -> tuple[list[Any], list[Any]]:
    """The sets of the labels that hold."""
    sets = [{task.labels[i] for i in np.flatnonzero(ids)} for ids in (target, chosen)]
    return [sets[0]], [sets[1]]


def scores(task: Task, gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> Scores:
    """Those of sets of labels."""
    return set_scores(gold, predicted) if gold else {}


def answer(
    task: Task, decision: Decision, text: str, words: Sequence[tuple[int, int]], all_scores: bool = False
) -> list[dict[str, Any]]:
    """``label`` and ``score`` of the labels that hold, the surest first; none for a text without a word.

    If asked, those of all labels, each with ``holds``.
    """
    if not words:
        return []
    chosen, scores = decision
    places = np.arange(len(chosen)) if all_scores else np.flatnonzero(chosen)
    order = places[np.argsort(-scores[places], kind="stable")]
    return [
        {
            "label": task.labels[i],
            "score": float(scores[i]),
            **({"holds": bool(chosen[i])} if all_scores else {}),
        }
        for i in order
    ]


MULTI_LABEL_CLASSIFICATION = TaskKind(
    stock="text-classification",
    problem_type="multi_label_classification",
    label_set="many",
    is_list=True,
    dtype="int32",
    metrics=("micro_f1", "macro_f1", "exact_match"),
    default_metric=default_metric,
    target=target,
    tensor=tensor,
    summed_loss=summed_loss,
    divergence=indicator_divergences,
    drawn=drawn,
    guess_loss=guess_loss,
    decide=decide,
    compared=compared,
    scores=scores,
    answer=answer,
)
