"""Soft targets: what a trained model, the teacher, says of training rows (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

if TYPE_CHECKING:
    from nlp_mtl.data.items import Item


class Teaching(NamedTuple):
    """How tasks learn from their teachers."""

    weight: float
    """The teacher's share of the target of an item that has a label, in the first step."""
    annealing: bool
    """Whether the share falls evenly to 0 over the run (Clark et al. 2019, "BAM!", arXiv 1907.04829)."""
    temperature: float
    """By which logits of both are divided."""

    def at(self, step: int, num_steps: int) -> "Teaching":
        """With the weight of a step."""
        return self._replace(weight=self.weight * (1 - step / num_steps)) if self.annealing else self


class SoftTarget(NamedTuple):
    """What a teacher says of a row."""

    logits: np.ndarray
    """[words, labels], or [1, labels] of a text."""
    is_taught: np.ndarray
    """[words] or [1] Which of them are learned from. All that have a label are."""


class SoftRows(NamedTuple):
    """What a teacher says of the rows of a micro-batch that a task learns from."""

    logits: Tensor
    """As the task's: [r, tokens, labels], [1, n, labels] packed, or [r, labels]."""
    weights: Tensor
    """[r, tokens], [1, n] or [r] What each item's difference from its teacher counts; 0 where there is nothing."""
    label_weight: float
    """What losses of labels count."""
    temperature: float


def soft_column(task: str) -> str:
    """The name of the column that holds a teacher's logits of each row, as bytes of float32."""
    return f"soft/{task}"


def soft_target(logits: bytes, order: Sequence[int], is_labelled: np.ndarray | None) -> SoftTarget:
    """A row's.

    Args:
        order: where in the teacher's logits each label of the student's stands.
        is_labelled: [words] or [1] what has a label, where the teacher is asked of nothing else; None: it is.
    """
    found = np.frombuffer(logits, dtype=np.float32).reshape(-1, len(order))[:, order]
    return SoftTarget(found, np.ones(len(found), dtype=bool) if is_labelled is None else is_labelled)


def said(task: Task, items: Sequence["Item"], is_labelled: np.ndarray, teaching: Teaching) -> tuple[Tensor, Tensor]:
    """What a teacher says of the words that items answer, or of their texts, one behind the other.

    Args:
        is_labelled: [n] whether they have labels.

    Returns:
        logits, [n, labels], and what each counts, [n], 0 where it is not learned from.
    """
    logits, taught = [np.zeros((0, len(task.labels)), dtype=np.float32)], [np.zeros(0, dtype=np.float32)]
    for item in items:
        soft = item.soft[task.name]
        part = slice(item.window.first_word, item.window.last_word) if kind_of(task).reads_words else slice(None)
        logits.append(soft.logits[part])
        taught.append(soft.is_taught[part] * np.float32(1 if kind_of(task).reads_words else item.share))
    # What has no label has nothing else to learn from.
    weights = np.concatenate(taught) * np.where(is_labelled, np.float32(teaching.weight), np.float32(1))
    return torch.from_numpy(np.concatenate(logits)), torch.from_numpy(weights)
