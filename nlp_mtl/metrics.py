"""Scores over label names, sets of them, and numbers: pure functions, gold first.

Span F1 is seqeval's over the whole corpus. The headline is strict IOB2: a predicted span counts only
if it starts with ``B-``. The conlleval-style value, which also takes an ``I-`` after ``O`` as a start,
stands beside it as ``span_f1_lenient``; it is seqeval's default and is never lower by design of the
scheme, only by accident of the data.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from nlp_mtl.tasks import is_iob

Scores = dict[str, Any]
"""``{metric: value}``; ``per_label`` and ``per_span`` hold ``{label: {metric: value}}``."""


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of items whose label is right; there must be one."""
    return sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)


def label_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (gold items) of each label that occurs in gold or predicted."""
    right = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    return _label_scores(right, Counter(gold), Counter(predicted))


def _label_scores(
    right: Counter[str], in_gold: Counter[str], in_predicted: Counter[str]
) -> dict[str, dict[str, float]]:
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
    from seqeval.metrics import f1_score  # it takes a second, and recipes are read without
    from seqeval.metrics.v1 import precision_recall_fscore_support, unique_labels
    from seqeval.scheme import IOB2

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


def label_metrics(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    """``accuracy``, ``macro_f1``, ``items`` and ``per_label`` of one label an item; there must be one."""
    return {
        "accuracy": accuracy(gold, predicted),
        "macro_f1": macro_f1(gold, predicted),
        "items": len(gold),
        "per_label": label_scores(gold, predicted),
    }


def set_scores(gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> Scores:
    """Scores of sets of labels, one an item; there must be one.

    Returns:
        ``micro_f1`` over all labels of all items, ``macro_f1``, the mean F1 of the labels that occur in gold or
        predicted, ``exact_match``, the share of items with just the right set, ``items`` and ``per_label``. Without any
        label, gold or predicted, both F1 are 0.
    """
    pairs = list(zip(gold, predicted, strict=True))
    right = Counter(label for g, p in pairs for label in {*g} & {*p})
    in_gold = Counter(label for g, _ in pairs for label in {*g})
    in_predicted = Counter(label for _, p in pairs for label in {*p})
    per_label = _label_scores(right, in_gold, in_predicted)
    both = in_gold.total() + in_predicted.total()
    return {
        "micro_f1": 2 * right.total() / both if both else 0.0,
        "macro_f1": sum(score["f1"] for score in per_label.values()) / len(per_label) if per_label else 0.0,
        "exact_match": sum({*g} == {*p} for g, p in pairs) / len(pairs),
        "items": len(pairs),
        "per_label": per_label,
    }


def number_scores(gold: Sequence[float], predicted: Sequence[float]) -> Scores:
    """Scores of numbers; there must be one.

    Returns:
        ``pearson`` and ``spearman``, correlations of values and of ranks, ``mse`` and ``mae``, mean squared and
        absolute errors, and ``items``. Correlations with what does not vary are 0: such answers tell nothing.
    """
    from scipy.stats import rankdata

    pair = [np.asarray(values, dtype=np.float64) for values in (gold, predicted)]
    errors = pair[0] - pair[1]
    return {
        "pearson": _correlation(pair[0], pair[1]),
        "spearman": _correlation(rankdata(pair[0]), rankdata(pair[1])),
        "mse": float(np.mean(errors**2)),
        "mae": float(np.mean(np.abs(errors))),
        "items": len(errors),
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one of both does not vary, or there are no two."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def old_scores(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of an extended model's results, the main metrics of old tasks that were scored, before and after.

    Returns:
        ``task``, ``split``, ``metric``, ``before``, ``after`` of each.
    """
    found = []
    for task in results["extension"]["old_tasks"]:
        for split, scored in results["extension"]["before"].items():
            if task in scored and task in results["scores"].get(split, {}):
                metric = results["main_metrics"][task]
                values = {"before": scored[task][metric], "after": results["scores"][split][task][metric]}
                found.append({"task": task, "split": split, "metric": metric, **values})
    return found
