"""One label for each text: sentiment, topic, entailment."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_mtl.metrics import Scores, label_metrics
from nlp_mtl.task_types.kind import Decision, Reader, Target, TaskKind
from nlp_mtl.task_types.losses import label_divergences, label_losses
from nlp_mtl.task_types.probabilities import by_label, each_row, softmax, stacked
from nlp_mtl.tasks import MISSING, PLAIN_LOSS, LossShape, Metric, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor


def default_metric(labels: Sequence[str]) -> Metric:
    """Accuracy."""
    return "accuracy"


def target(reader: Reader, cell: Any, num_words: int, where: Callable[[], str]) -> Target:
    """The label's id alone."""
    try:
        label = reader(cell)
    except KeyError as error:
        raise reader.unknown(cell, where()) from error
    return [] if label == MISSING else [label]


def tensor(targets: Sequence[Target]) -> "Tensor":
    """[r] ids."""
    import torch

    return torch.tensor([one[0] for one in targets], dtype=torch.long)


def summed_loss(logits: "Tensor", targets: "Tensor", weights: "Tensor", shape: LossShape = PLAIN_LOSS) -> "Tensor":
    """Cross-entropy. ``logits``: [r, labels]; ``targets``, ``weights``: [r]."""
    return (label_losses(logits, targets, shape) * weights).sum()


def drawn(logits: "Tensor", targets: "Tensor", generator: "Generator") -> "Tensor":
    """[r] ids. ``logits``: [r, labels]."""
    return logits.softmax(-1).multinomial(1, generator=generator)[:, 0] if len(logits) else targets


def guess_loss(task: Task) -> float:
    """All labels alike."""
    return math.log(len(task.labels))


def decide(task: Task, logits: Sequence[np.ndarray], transitions: np.ndarray | None = None) -> list[Decision]:
    """The likeliest label of each text."""
    scores = softmax(stacked(logits))
    return each_row(scores.argmax(-1)[:, None] if len(scores) else scores, scores)


def compared(task: Task, target: np.ndarray, chosen: np.ndarray) -> tuple[list[Any], list[Any]]:
    """The names of both."""
    return [task.labels[target[0]]], [task.labels[chosen[0]]]


def scores(task: Task, gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Those of labels, one a text."""
    return label_metrics(gold, predicted) if gold else {}


def answer(
    task: Task, decision: Decision, text: str, words: Sequence[tuple[int, int]], all_scores: bool = False
) -> dict[str, Any]:
    """``label`` and ``score``, and ``scores`` of all labels if asked; None for a text without a word."""
    if not words:
        return {"label": None, "score": None, **({"scores": None} if all_scores else {})}
    best = int(decision.chosen[0])
    found = {"label": task.labels[best], "score": float(decision.scores[best])}
    return {**found, "scores": by_label(task.labels, decision.scores)} if all_scores else found


TEXT_CLASSIFICATION = TaskKind(
    stock="text-classification",
    problem_type="single_label_classification",
    label_set="one",
    is_list=False,
    dtype="int32",
    metrics=("accuracy", "macro_f1"),
    default_metric=default_metric,
    target=target,
    tensor=tensor,
    summed_loss=summed_loss,
    divergence=label_divergences,
    drawn=drawn,
    guess_loss=guess_loss,
    decide=decide,
    compared=compared,
    scores=scores,
    answer=answer,
)
