"""Logits to probabilities, and rows of them to decisions."""

from collections.abc import Sequence

import numpy as np

from nlp_mtl.task_types.kind import Decision


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of labels of which one holds; [..., labels]."""
    if not logits.size:
        return logits
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of labels that hold or not, each for itself; the same shape."""
    small = np.exp(-np.abs(logits))  # never more than 1
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small))


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, labels] One row of logits each; [0, 0] of none."""
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def each_row(chosen: np.ndarray, scores: np.ndarray) -> list[Decision]:
    """A decision a row, of arrays whose first dimension is rows."""
    return [Decision(*pair) for pair in zip(chosen, scores, strict=True)]


def by_label(labels: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """``{label: score}``, plain values."""
    return dict(zip(labels, scores.tolist(), strict=True))
