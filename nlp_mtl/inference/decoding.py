"""Label probabilities to answers: plain values, with offsets in characters of the user's text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nlp_mtl.tasks import Task, iob_spans


def decode_tokens(
    task: Task, probabilities: np.ndarray, text: str, words: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """The answer of a token task.

    Args:
        probabilities: [words, labels].
        text: the user's text.
        words: where each word lies in it.

    Returns:
        for IOB tags the spans, else one entry a word; each with ``text``, ``label``, ``start``, ``end`` (so that
        ``text[start:end]`` is it) and ``score``, for a span the mean probability of its words' labels.
    """
    if not len(words):
        return []
    best = probabilities.argmax(-1)
    scores = probabilities[np.arange(len(words)), best]
    labels = [task.labels[i] for i in best]
    if task.is_spans:
        found = [span for span in iob_spans(labels) if words[span[1]][0] < words[span[2] - 1][1]]  # not of empty words
    else:
        found = [(label, place, place + 1) for place, label in enumerate(labels)]
    answers = []
    for label, first, stop in found:
        start, end = words[first][0], words[stop - 1][1]
        answers.append(
            {
                "text": text[start:end],
                "label": label,
                "start": start,
                "end": end,
                "score": float(scores[first:stop].mean()),
            }
        )
    return answers


def decode_text(task: Task, probabilities: np.ndarray, is_empty: bool) -> dict[str, Any]:
    """The answer of a text task: ``label`` and ``score``; both None for a text without a word.

    Args:
        probabilities: [labels].
    """
    if is_empty:
        return {"label": None, "score": None}
    best = int(probabilities.argmax())
    return {"label": task.labels[best], "score": float(probabilities[best])}
