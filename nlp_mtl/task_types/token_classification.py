"""A label for each word: entities, parts of speech."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_mtl.errors import DataError
from nlp_mtl.metrics import Scores, label_metrics, span_scores
from nlp_mtl.task_types.chains import best_sequence, breaks, iob2_transitions
from nlp_mtl.task_types.kind import Decision, Reader, Target, TaskKind
from nlp_mtl.task_types.losses import label_divergences, label_losses
from nlp_mtl.task_types.probabilities import by_label, softmax
from nlp_mtl.task_types.text_classification import guess_loss
from nlp_mtl.tasks import MISSING, PLAIN_LOSS, LossShape, Metric, Task, are_iob, iob_spans

if TYPE_CHECKING:
    from torch import Generator, Tensor


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


def summed_loss(logits: "Tensor", targets: "Tensor", weights: "Tensor", shape: LossShape = PLAIN_LOSS) -> "Tensor":
    """Cross-entropy. ``logits``: [r, tokens, labels], ``targets``: [r, tokens]; words count 1, whatever ``weights``."""
    from torch.nn.functional import cross_entropy

    logits, targets = logits.flatten(0, 1), targets.flatten()
    if shape == PLAIN_LOSS:  # one kernel adds up
        return cross_entropy(logits.float(), targets, ignore_index=MISSING, reduction="sum")
    return label_losses(logits, targets, shape).sum()


def drawn(logits: "Tensor", targets: "Tensor", generator: "Generator") -> "Tensor":
    """An id for each word that has one, [r, tokens]. ``logits``: [r, tokens, labels]."""
    labelled = targets != MISSING
    found = targets.clone()
    if labelled.any():
        found[labelled] = logits[labelled].softmax(-1).multinomial(1, generator=generator)[:, 0]
    return found


def decide(task: Task, logits: Sequence[np.ndarray], transitions: np.ndarray | None = None) -> list[Decision]:
    """The likeliest label of each word, whatever stands beside it."""
    found, scores, ends = _likeliest(logits)
    return _by_row(found, scores, ends)


def decide_iob2(task: Task, logits: Sequence[np.ndarray], transitions: np.ndarray | None = None) -> list[Decision]:
    """The likeliest labels of each text that IOB2 allows together; scores are those of each word for itself."""
    chosen, scores, ends = _likeliest(logits)
    allowed = iob2_transitions(task.labels)
    starts = np.concatenate([[0], ends])
    is_first = np.isin(np.arange(len(chosen)), starts)
    broken = np.flatnonzero(breaks(chosen, is_first, allowed))
    # Where the likeliest labels break no rule they are the best sequence.
    for row in np.unique(np.searchsorted(ends, broken, side="right")):
        chosen[starts[row] : ends[row]] = best_sequence(logits[row], allowed)
    return _by_row(chosen, scores, ends)


def _likeliest(logits: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all rows' words: their likeliest labels, [words], and probabilities, [words, labels]; where rows end."""
    scores = softmax(np.concatenate(logits) if logits else np.zeros((0, 1), dtype=np.float32))
    return scores.argmax(-1), scores, np.cumsum([len(one) for one in logits], dtype=np.int64)


def _by_row(chosen: np.ndarray, scores: np.ndarray, ends: np.ndarray) -> list[Decision]:
    found, start = [], 0
    for end in ends.tolist():
        found.append(Decision(chosen[start:end], scores[start:end]))
        start = end
    return found


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


def answer(
    task: Task, decision: Decision, text: str, words: Sequence[tuple[int, int]], all_scores: bool = False
) -> list[dict[str, Any]]:
    """For IOB tags the spans, else one entry a word.

    Args:
        text: the user's text.
        words: where each word lies in it.
        all_scores: with the scores of all labels: of a span, the mean over its words of each tag's.

    Returns:
        entries with ``text``, ``label``, ``start``, ``end`` (so that ``text[start:end]`` is it) and ``score``, for a
        span the mean probability of its words' labels.
    """
    if not len(words):
        return []
    chosen = decision.chosen.tolist()
    sure = decision.scores[np.arange(len(words)), decision.chosen]
    labels = [task.labels[i] for i in chosen]
    if not task.is_spans:
        found = [
            {"text": text[start:end], "label": label, "start": start, "end": end, "score": score}
            for (start, end), label, score in zip(words, labels, sure.tolist(), strict=True)
        ]
        if all_scores:
            for entry, scores in zip(found, decision.scores, strict=True):
                entry["scores"] = by_label(task.labels, scores)
        return found
    found = []
    for label, first, stop in iob_spans(labels):
        start, end = words[first][0], words[stop - 1][1]
        if start < end:  # empty words are no span
            score = float(sure[first:stop].mean())
            entry = {"text": text[start:end], "label": label, "start": start, "end": end, "score": score}
            if all_scores:
                entry["scores"] = by_label(task.labels, decision.scores[first:stop].mean(0))
            found.append(entry)
    return found


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
    divergence=label_divergences,
    drawn=drawn,
    guess_loss=guess_loss,
    decide=decide,
    compared=compared,
    scores=scores,
    answer=answer,
)

IOB2_TOKEN_CLASSIFICATION = replace(TOKEN_CLASSIFICATION, decide=decide_iob2)
"""Its labels are IOB2 tags, and so are its answers."""
