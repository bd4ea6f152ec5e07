"""Labels of words that follow each other: the best sequence, how sure each label is, and what IOB2 allows."""

from collections.abc import Sequence

import numpy as np

# Transitions are [labels + 2, labels]: scores of the second label behind the first; then of the first label of a text,
# then of the last.


def iob2_transitions(labels: Sequence[str]) -> np.ndarray:
    """0 where IOB2 lets a label follow another, or begin a text, and minus infinity where it does not.

    ``I-X`` follows ``B-X`` or ``I-X`` alone. Where there is no ``B-X``, nothing else could begin an X: then it may.
    """
    found = np.zeros((len(labels) + 2, len(labels)), dtype=np.float32)
    for place, label in enumerate(labels):
        if label[:2] == "I-" and f"B-{label[2:]}" in labels:
            follows = [one[:2] in ("B-", "I-") and one[2:] == label[2:] for one in labels]
            found[:-1, place] = np.where([*follows, False], 0, -np.inf)
    return found


def breaks(chosen: np.ndarray, is_first: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """[words] Whether a word's label may not stand where it stands.

    Args:
        chosen: [words] labels, of one text behind the other.
        is_first: [words] where a text begins.
        transitions: as :func:`iob2_transitions` gives them.
    """
    previous = np.where(is_first, transitions.shape[1], np.roll(chosen, 1))
    return np.asarray(np.isneginf(transitions[previous, chosen]))


def best_sequence(logits: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """[words] The labels whose logits and transitions sum to most (Viterbi 1967).

    Args:
        logits: [words, labels] of a whole text.
    """
    labels = np.zeros(len(logits), dtype=np.int64)
    if not len(logits):
        return labels
    between, begin, end = transitions[:-2], transitions[-2], transitions[-1]
    logits = logits.astype(np.float64)
    best = logits[0] + begin
    came_from = np.zeros(logits.shape, dtype=np.int64)
    for word in range(1, len(logits)):
        candidates = best[:, None] + between
        came_from[word] = candidates.argmax(0)
        best = candidates.max(0) + logits[word]
    labels[-1] = (best + end).argmax()
    for word in range(len(logits) - 1, 0, -1):
        labels[word - 1] = came_from[word, labels[word]]
    return labels


def marginals(logits: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """[words, labels] The probability of each label over all sequences (forward and backward); 0 where none may be."""
    if not len(logits):
        return logits
    between, begin, end = transitions[:-2], transitions[-2], transitions[-1]
    logits = logits.astype(np.float64)
    forward, backward = np.zeros_like(logits), np.zeros_like(logits)
    forward[0] = logits[0] + begin
    for word in range(1, len(logits)):
        forward[word] = _logsumexp(forward[word - 1][:, None] + between, axis=0) + logits[word]
    backward[-1] = end
    for word in range(len(logits) - 2, -1, -1):
        backward[word] = _logsumexp(between + logits[word + 1] + backward[word + 1], axis=1)
    both = forward + backward
    sums = _logsumexp(both, axis=1)[:, None]
    return np.asarray(np.exp(both - np.where(np.isneginf(sums), 0, sums)), dtype=np.float32)


def _logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    largest = values.max(axis=axis, keepdims=True)
    largest = np.where(np.isneginf(largest), 0, largest)
    with np.errstate(divide="ignore"):  # of nothing that may be
        return np.asarray(np.log(np.exp(values - largest).sum(axis=axis)) + largest.squeeze(axis))
