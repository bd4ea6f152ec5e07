"""Is one model better than another on these test rows? The paired bootstrap, for any metric.

Test rows (texts) are drawn again, as many as there are, with replacement; both models are scored on the same draw
(Efron and Tibshirani 1993; for NLP: Berg-Kirkpatrick et al. 2012, ACL). Metrics that are a function of sums over rows
are scored by those sums, so that ten thousand draws take seconds.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from seqeval.scheme import IOB2, Tokens

from nlp_mtl.task_types import score_task
from nlp_mtl.tasks import Task

RESAMPLES = 10_000
"""Draws of the test rows: the ends of a 95% interval are then known to about 3% of its width."""

FEW_RESAMPLES = 1_000
"""The same for metrics that have to be computed anew for each draw."""

_AT_ONCE = 2_000_000
"""Drawn rows that are held at a time."""

Array = NDArray[np.float64]


class RowAnswers(NamedTuple):
    """What one model says of the test rows of a task, and what is right."""

    rows: Sequence[Any]
    """Which row each entry belongs to, in any form. Entries of one row are drawn together."""
    gold: Sequence[Any]
    predicted: Sequence[Any]


class Sums(NamedTuple):
    """A metric that is a function of sums over rows."""

    of_rows: Array
    """[rows, sums] What each row adds."""
    score: Callable[[Array], Array]
    """[..., sums] to [...]: the metric."""


class Comparison(NamedTuple):
    """How much better one model is than another."""

    difference: float
    """The mean score of the first model's runs less that of the second's."""
    low: float
    high: float
    """The interval of the difference."""
    resamples: int


def row_sums(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Sums | None:
    """The main metric of a task by sums over entries; None: it is no function of sums that is known here."""
    if task.type == "multi-label-classification":
        return _set_sums(task, gold, predicted)
    is_tokens = task.type == "token-classification"
    if not is_tokens and task.type != "text-classification":
        return None
    entries = (
        zip(gold, predicted, strict=True) if is_tokens else (([g], [p]) for g, p in zip(gold, predicted, strict=True))
    )
    if task.metric == "accuracy":
        return Sums(
            _stacked([(sum(a == b for a, b in zip(*pair, strict=True)), len(pair[0])) for pair in entries]), _share
        )
    if task.metric == "macro_f1":
        return Sums(_label_counts(task.labels, list(entries)), _macro_f1)
    if task.metric == "span_f1":
        return Sums(_stacked([_span_counts(*pair) for pair in entries]), _f1)
    return None


def _set_sums(task: Task, gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> Sums | None:
    """The same of sets of labels."""
    if task.metric == "exact_match":
        return Sums(_stacked([(set(g) == set(p), 1) for g, p in zip(gold, predicted, strict=True)]), _share)
    if task.metric in ("macro_f1", "micro_f1"):
        counts = _set_counts(task.labels, gold, predicted)
        return Sums(counts, _macro_f1 if task.metric == "macro_f1" else _micro_f1)
    return None


def _stacked(rows: Sequence[Sequence[float]]) -> Array:
    return np.asarray(rows, dtype=np.float64)


def _share(sums: Array) -> Array:
    """Not a number where there is no item."""
    right, items = sums[..., 0], sums[..., 1]
    return np.asarray(np.divide(right, items, out=np.full(right.shape, np.nan), where=items > 0))


def _f1(sums: Array) -> Array:
    """Of right, gold and predicted; 0 where there is neither gold nor predicted."""
    right, all_of_both = sums[..., 0], sums[..., 1] + sums[..., 2]
    return np.asarray(2 * right / np.maximum(all_of_both, 1))


def _macro_f1(sums: Array) -> Array:
    """The mean over labels that occur in gold or predicted; 0 where none does."""
    of_labels = sums.reshape(*sums.shape[:-1], -1, 3)
    occurs = of_labels[..., 1] + of_labels[..., 2] > 0
    return np.asarray((_f1(of_labels) * occurs).sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1))


def _micro_f1(sums: Array) -> Array:
    """Of all labels together."""
    return _f1(sums.reshape(*sums.shape[:-1], -1, 3).sum(axis=-2))


def _label_counts(labels: Sequence[str], entries: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Array:
    """[entries, 3 labels] Of each label: right, gold, predicted."""
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(entries), len(labels), 3))
    for row, (gold, predicted) in enumerate(entries):
        for one, other in zip(gold, predicted, strict=True):
            counts[row, places[one], 1] += 1
            counts[row, places[other], 2] += 1
            counts[row, places[one], 0] += one == other
    return counts.reshape(len(entries), -1)


def _set_counts(labels: Sequence[str], gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> Array:
    """[entries, 3 labels] As :func:`_label_counts`, of sets."""
    holds = [np.array([[label in one for label in labels] for one in sets], dtype=bool) for sets in (gold, predicted)]
    return np.stack([holds[0] & holds[1], *holds], axis=-1).reshape(len(gold), -1).astype(np.float64)


def _span_counts(gold: Sequence[str], predicted: Sequence[str]) -> tuple[int, int, int]:
    """Spans that are right, in gold, and predicted, as strict IOB2 has them."""
    of_gold, of_predicted = (
        {(span.start, span.end, span.tag) for span in Tokens(list(tags), IOB2).entities} for tags in (gold, predicted)
    )
    return len(of_gold & of_predicted), len(of_gold), len(of_predicted)


def compare_runs(
    task: Task, one: Sequence[RowAnswers], other: Sequence[RowAnswers], *, level: float = 0.95, seed: int = 0
) -> Comparison:
    """How much better the runs of one model are than those of another, with a percentile interval over test rows.

    Each draw of the rows scores every run and takes the difference of the two means over runs. So the interval tells
    what other test rows of the same kind could say of these trained models. It does not tell what other seeds could.

    Args:
        task: higher values of its metric are better.
        one, other: the answers of their runs, one or more each, all on the same rows in the same order.
        level: of the interval.
        seed: of the draws.

    Raises:
        ValueError: the rows differ, or there is none.
    """
    return compare_tasks([(task, one, other)], level=level, seed=seed)


def compare_tasks(
    of_tasks: Sequence[tuple[Task, Sequence[RowAnswers], Sequence[RowAnswers]]], *, level: float = 0.95, seed: int = 0
) -> Comparison:
    """The same of the mean over tasks. Tasks that label the same rows are scored on the same draws of them.

    Args:
        of_tasks: a task and its answers, as :func:`compare_runs` takes them.

    Raises:
        ValueError: as :func:`compare_runs`.
    """
    sums = []
    for task, one, other in of_tasks:
        _check([*one, *other])
        sums.append([row_sums(task, run.gold, run.predicted) for run in (*one, *other)])
    count = FEW_RESAMPLES if any(None in found for found in sums) else RESAMPLES
    total, whole = np.zeros(count), 0.0
    for number, group in enumerate(_with_common_rows([one[0].rows for _, one, _ in of_tasks])):
        codes: dict[Any, int] = {}
        for place in group:
            for row in of_tasks[place][1][0].rows:
                codes.setdefault(row, len(codes))
        for place in group:
            task, one, other = of_tasks[place]
            owners = np.array([codes[row] for row in one[0].rows])
            # Groups with as many rows have draws of their own.
            drawn = draws(len(codes), count, seed + number * 1_000_003)
            if None in sums[place]:
                scores = _scored_anew(task, [*one, *other], owners, len(codes), drawn)
                all_rows = np.array([_score(task, run.gold, run.predicted) for run in (*one, *other)])
            else:
                known = [found for found in sums[place] if found is not None]
                by_row = [_added(found.of_rows, owners, len(codes)) for found in known]
                scores = _scored_by_sums(by_row, known[0].score, drawn)
                all_rows = np.array([known[0].score(added.sum(axis=0)) for added in by_row])
            total += np.concatenate([_difference(part, len(one)) for part in scores])
            whole += float(_difference(all_rows[None], len(one))[0])
    # Not finite: a draw without any row of a task that labels few of its group's.
    means = total[np.isfinite(total)] / len(of_tasks)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Comparison(whole / len(of_tasks), float(low), float(high), count)


def _check(runs: Sequence[RowAnswers]) -> None:
    first = runs[0]
    if any(list(run.rows) != list(first.rows) or list(run.gold) != list(first.gold) for run in runs):
        raise ValueError("the runs answer for different rows")
    if not len(first.rows):
        raise ValueError("there are no rows to compare on")


def _with_common_rows(rows: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Places of tasks, those together that share rows, directly or through others."""
    groups: list[tuple[list[int], set[Any]]] = []
    for place, of_task in enumerate(rows):
        found = [group for group in groups if not group[1].isdisjoint(of_task)]
        apart = [group for group in groups if group[1].isdisjoint(of_task)]
        joined = sorted([place, *(one for places, _ in found for one in places)])
        groups = [*apart, (joined, set(of_task).union(*(known for _, known in found)))]
    return sorted(places for places, _ in groups)


def _difference(scores: Array, num_first: int) -> Array:
    """[draws] From [draws, runs]: the mean of the first runs less that of the others."""
    return np.asarray(scores[:, :num_first].mean(axis=1) - scores[:, num_first:].mean(axis=1))


def draws(num_rows: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """[some resamples, num_rows] The rows that are drawn, a part at a time; the same for the same arguments."""
    random = np.random.default_rng([seed, num_rows])
    at_once = max(1, _AT_ONCE // num_rows)
    for start in range(0, resamples, at_once):
        yield random.integers(num_rows, size=(min(at_once, resamples - start), num_rows))


def _scored_by_sums(
    by_row: Sequence[Array], score: Callable[[Array], Array], drawn_rows: Iterable[NDArray[np.int64]]
) -> Iterator[Array]:
    """[some resamples, runs] Scores."""
    num_rows = len(by_row[0])
    for drawn in drawn_rows:
        offsets = np.arange(len(drawn))[:, None] * num_rows
        times = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        yield np.stack([score(times @ added) for added in by_row], axis=1)


def _scored_anew(
    task: Task, runs: Sequence[RowAnswers], owners: NDArray[np.int64], num_rows: int,
    drawn_rows: Iterable[NDArray[np.int64]],
) -> Iterator[Array]:  # fmt: skip
    entries_of = [np.flatnonzero(owners == row) for row in range(num_rows)]
    for drawn in drawn_rows:
        for rows in drawn:
            chosen = np.concatenate([entries_of[row] for row in rows]).tolist()
            if not chosen:
                yield np.full((1, len(runs)), np.nan)
                continue
            yield np.array(
                [[_score(task, [run.gold[i] for i in chosen], [run.predicted[i] for i in chosen]) for run in runs]]
            )


def _score(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    return float(score_task(task, gold, predicted)[task.metric])


def _added(of_entries: Array, owners: NDArray[np.int64], num_rows: int) -> Array:
    """[rows, sums] What the entries of each row add together."""
    added = np.zeros((num_rows, of_entries.shape[1]))
    np.add.at(added, owners, of_entries)
    return added
