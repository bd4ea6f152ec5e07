"""A label for each word: entities, parts of speech."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_mtl.errors import DataError
from nlp_mtl.metrics import Scores, label_metrics, span_scores
from nlp_mtl.task_types.kind import Reader, Target, TaskKind
from nlp_mtl.task_types.probabilities import softmax
from nlp_mtl.task_types.text_classification import guess_loss
from nlp_mtl.tasks import MISSING, Metric, Task, are_iob, iob_spans

if TYPE_CHECKING:
    from torch import Tensor


def default_metric(labels: Sequence[str]) -> Metric:
    """Span F1 of IOB tags, else accuracy."""
    return "span_f1" if are_iob(labels) else "accuracy"


def target(reader: Reader, cell: Any, num_words: int, where: Callable[[], str]) -> Target:
    """An id a word, MISSING where it has no label."""
    if cell is not None and not isinstance(cell, list):
        raise DataError(f"task `{reader.task}`: {where()} has {cell!r:.60}; expected a list of labels, one a word")
    if cell is None or (not cell and num_words):
        return []
    if len(cell) != num_words:
        raise DataError(
            f"task `{reader.task}`: {where()} has {num_words} words but {len(cell)} labels; each word needs one"
        )
    try:
        return [reader(label) for label in cell]
    except KeyError as error:
        word = next(n for n, label in enumerate(cell) if not _is_known(reader, label))
        raise reader.unknown(cell[word], f"{where()}, word {word}") from error


def _is_known(reader: Reader, value: Any) -> bool:
    try:
        reader(value)
    except KeyError:
        return False
    return True


def tensor(targets: Sequence[Target]) -> "Tensor":
    """Not for words: a micro-batch puts each where its first sub-word stands."""
    raise TypeError("labels of words are laid out with their tokens")


def summed_loss(logits: "Tensor", targets: "Tensor", weights: "Tensor") -> "Tensor":
    """Cross-entropy. ``logits``: [r, tokens, labels], ``targets``: [r, tokens]; words count 1, whatever ``weights``."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=MISSING, reduction="sum")


def choose(probabilities: np.ndarray) -> np.ndarray:
    """[words] The likeliest label of each."""
    return np.asarray(probabilities.argmax(-1))


def compared(task: Task, target: np.ndarray, chosen: np.ndarray) -> tuple[list[Any], list[Any]]:
    """The stretches of a row in which every word has a label: a span does not reach over one without."""
    edges = np.flatnonzero(np.diff(target != MISSING, prepend=False, append=False)).reshape(-1, 2)
    runs = [slice(int(start), int(stop)) for start, stop in edges]
    names = [[[task.labels[i] for i in ids[run]] for run in runs] for ids in (target, chosen)]
    return names[0], names[1]


def scores(task: Task, gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Those of words over all rows; for IOB tags also of spans."""
    flat_gold, flat_predicted = ([label for row in rows for label in row] for rows in (gold, predicted))
    if not flat_gold:
        return {}
    found = label_metrics(flat_gold, flat_predicted)
    items, per_label = found.pop("items"), found.pop("per_label")
    spans = span_scores(gold, predicted) if task.is_spans else {}
    return {**found, **spans, "items": items, "per_label": per_label}


def answer(task: Task, probabilities: np.ndarray, text: str, words: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """For IOB tags the spans, else one entry a word.

    Args:
        probabilities: [words, labels].
        text: the user's text.
        words: where each word lies in it.

    Returns:
        entries with ``text``, ``label``, ``start``, ``end`` (so that ``text[start:end]`` is it) and ``score``, for a
        span the mean probability of its words' labels.
    """
    return entries(task, choose(probabilities), probabilities, text, words)


def entries(
    task: Task, chosen: np.ndarray, probabilities: np.ndarray, text: str, words: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """:func:`answer` with the chosen labels, [words]."""
    if not len(words):
        return []
    scores = probabilities[np.arange(len(words)), chosen]
    labels = [task.labels[i] for i in chosen]
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


TOKEN_CLASSIFICATION = TaskKind(
    stock="token-classification",
    problem_type=None,
    label_set="one",
    is_list=True,
    dtype="int32",
    metrics=("span_f1", "accuracy", "macro_f1"),
    default_metric=default_metric,
    target=target,
    tensor=tensor,
    summed_loss=summed_loss,
    guess_loss=guess_loss,
    decide=softmax,
    choose=choose,
    compared=compared,
    scores=scores,
    answer=answer,
)
