"""Logits to probabilities."""

import numpy as np


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
