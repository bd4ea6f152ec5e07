"""Scores over label names: pure functions, gold first.

Span F1 is seqeval's over the whole corpus. The headline is strict IOB2: a predicted span counts only
if it starts with ``B-``. The conlleval-style value, which also takes an ``I-`` after ``O`` as a start,
stands beside it as ``span_f1_lenient``; it is seqeval's default and is never lower by design of the
scheme, only by accident of the data.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from seqeval.metrics import f1_score
from seqeval.metrics.v1 import precision_recall_fscore_support, unique_labels
from seqeval.scheme import IOB2

from nlp_mtl.tasks import Metric, Task, is_iob

Scores = dict[str, Any]
"""``{metric: value}``; ``per_label`` and ``per_span`` hold ``{label: {metric: value}}``."""


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of items whose label is right; there must be one."""
    return sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)


def label_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (gold items) of each label that occurs in gold or predicted."""
    right = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    in_gold, in_predicted = Counter(gold), Counter(predicted)
    scores = {}
    for label in sorted(in_gold.keys() | in_predicted.keys()):
        precision = right[label] / in_predicted[label] if in_predicted[label] else 0.0
        recall = right[label] / in_gold[label] if in_gold[label] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if right[label] else 0.0
        scores[label] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": in_gold[label],
        }
    return scores


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean F1 of the labels that occur in gold or predicted (as scikit-learn counts them); there must be one."""
    scores = label_scores(gold, predicted)
    return sum(score["f1"] for score in scores.values()) / len(scores)


def span_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Span scores of IOB2 tags, one sequence a row.

    Returns ``span_precision``, ``span_recall`` and ``span_f1`` (strict IOB2, micro average over the
    corpus), ``span_f1_lenient`` (conlleval style) and ``per_span`` (strict scores of each type).
    A corpus without any span, gold or predicted, scores 0, as in seqeval.

    Raises:
        ValueError: a tag is not IOB, or gold and predicted differ in length.
    """
    odd = {tag for rows in (gold, predicted) for row in rows for tag in row if not is_iob(tag)}
    if odd:
        raise ValueError(f"span F1 needs IOB tags; found {sorted(odd)[:5]}")
    gold, predicted = [list(row) for row in gold], [list(row) for row in predicted]
    # seqeval fails on an empty corpus, and its reports mix types up with averages ("macro avg" can be a type).
    if not any(tag != "O" for rows in (gold, predicted) for row in rows for tag in row):
        zeros = ("span_precision", "span_recall", "span_f1", "span_f1_lenient")
        return {**dict.fromkeys(zeros, 0.0), "per_span": {}}
    strict: dict[str, Any] = {"scheme": IOB2, "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(gold, predicted, average="micro", **strict)
    columns = precision_recall_fscore_support(gold, predicted, average=None, **strict)
    names = unique_labels(gold, predicted, IOB2)
    return {
        "span_f1": float(f1),
        "span_precision": float(precision),
        "span_recall": float(recall),
        "span_f1_lenient": float(f1_score(gold, predicted, zero_division=0)),
        "per_span": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(names, *columns, strict=True)
        },
    }


def score_task(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Scores:
    """All scores of a task: the main metric first.

    Args:
        gold: a label a row for text classification, a sequence of labels a row for tokens.
        predicted: the same shape.

    Returns:
        ``accuracy``, ``macro_f1``, ``per_label`` and ``items`` (labels counted); for IOB tags also
        :func:`span_scores`. Empty gold gives an empty result: there is nothing to say.
    """
    if task.type == "token-classification":
        flat_gold = [label for row in gold for label in row]
        flat_predicted = [label for row in predicted for label in row]
    else:
        flat_gold, flat_predicted = list(gold), list(predicted)
    if not flat_gold:
        return {}
    scores: Scores = {
        "accuracy": accuracy(flat_gold, flat_predicted),
        "macro_f1": macro_f1(flat_gold, flat_predicted),
    }
    if task.is_spans:
        scores |= span_scores(gold, predicted)
    main: Metric = task.metric
    return {
        main: scores.pop(main),
        **scores,
        "items": len(flat_gold),
        "per_label": label_scores(flat_gold, flat_predicted),
    }
