"""A number for each text: similarity, a rating, a grade."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_mtl.errors import DataError
from nlp_mtl.metrics import Scores, number_scores
from nlp_mtl.task_types.kind import Decision, Reader, Target, TaskKind
from nlp_mtl.task_types.probabilities import each_row, stacked
from nlp_mtl.tasks import PLAIN_LOSS, LossShape, Metric, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor

OUTPUT = "value"
"""What the head's one output is called, in answers and in an export."""


def default_metric(labels: Sequence[str]) -> Metric:
    """Pearson's correlation."""
    return "pearson"


def target(reader: Reader, cell: Any, num_words: int, where: Callable[[], str]) -> Target:
    """The number as it is: what an exported head answers is in the data's own unit."""
    if cell is None:
        return []
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    if not is_number or not abs(cell) <= sys.float_info.max:  # so are nan, and whole numbers that no float holds
        found = f"{cell!r:.60}"
        raise DataError(f"task `{reader.task}`: {where()} has {found}; expected a number, or null where there is none")
    return [float(cell)]


def tensor(targets: Sequence[Target]) -> "Tensor":
    """[r] numbers."""
    import torch

    return torch.tensor([one[0] for one in targets], dtype=torch.float32)


def summed_loss(logits: "Tensor", targets: "Tensor", weights: "Tensor", shape: LossShape = PLAIN_LOSS) -> "Tensor":
    """Squared errors. ``logits``: [r, 1]; ``targets``, ``weights``: [r]."""
    return ((logits.float().squeeze(-1) - targets).square() * weights).sum()


def divergence(logits: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """Squared errors of the teacher's numbers, which no temperature changes. Both: [..., 1]."""
    return (logits.float() - teacher.float()).square().sum(-1)


def drawn(logits: "Tensor", targets: "Tensor", generator: "Generator") -> "Tensor":
    """[r] numbers from a normal distribution around the answer whose variance is a half: the squared error is, but for
    a constant, minus the logarithm of its density."""
    import torch

    noise = torch.randn(len(logits), generator=generator, dtype=logits.dtype)
    return logits.squeeze(-1) + noise * math.sqrt(0.5)


def decide(task: Task, logits: Sequence[np.ndarray], transitions: np.ndarray | None = None) -> list[Decision]:
    """The numbers themselves."""
    numbers = stacked(logits)
    return each_row(numbers, numbers)


def compared(task: Task, target: np.ndarray, chosen: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Both numbers."""
    return [float(target[0])], [float(chosen[0])]


def scores(task: Task, gold: Sequence[float], predicted: Sequence[float]) -> Scores:
    """Those of numbers."""
    return number_scores(gold, predicted) if gold else {}


def answer(
    task: Task, decision: Decision, text: str, words: Sequence[tuple[int, int]], all_scores: bool = False
) -> dict[str, Any]:
    """``value``; None for a text without a word."""
    return {OUTPUT: float(decision.chosen[0]) if words else None}


REGRESSION = TaskKind(
    stock="text-classification",
    problem_type="regression",
    label_set="none",
    is_list=False,
    dtype="float64",
    metrics=("pearson", "spearman"),
    default_metric=default_metric,
    target=target,
    tensor=tensor,
    summed_loss=summed_loss,
    divergence=divergence,
    drawn=drawn,
    guess_loss=None,
    decide=decide,
    compared=compared,
    scores=scores,
    answer=answer,
)
