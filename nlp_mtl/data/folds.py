"""Folds of training rows: each row is in one of them, with all rows that say the same or nearly so."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.labelled_items import labelled_items
from nlp_mtl.data.loading import rows_at
from nlp_mtl.data.row_filter import Row, RowFilter
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task


def same_texts(rows: Iterable[Row]) -> np.ndarray:
    """[rows] A number for each text: the place of the first row that is the same, or nearly the same.

    Nearly: as :class:`nlp_mtl.data.row_filter.RowFilter` finds ``near`` duplicates.

    Raises:
        MissingExtraError: datasketch is not installed.
    """
    same_as = RowFilter("near").left_out(rows, ()).same_as
    return np.where(same_as < 0, np.arange(len(same_as)), same_as)


def row_codes(split: EncodedSplit, tasks: Sequence[Task]) -> np.ndarray:
    """[rows] What folds of a split keep in proportion: the labels of the first task that labels a text with one; where
    there is none, the rarest label that a row has for any task on words, or of several a text. 0: it has none.

    Args:
        tasks: those that read labels there; tasks without label sets say nothing.
    """
    read = [task for task in tasks if task.name in split.tasks and kind_of(task).label_set != "none"]
    classes = [task for task in read if kind_of(task).label_set == "one" and not kind_of(task).reads_words]
    if classes:
        return split.classes(classes[0].name).clip(-1) + 1
    found = np.zeros(len(split), dtype=np.int64)
    fewest = np.full(len(split), np.iinfo(np.int64).max)
    first = 1
    for task in read:
        items, counts = labelled_items(split, task), split.label_counts(task)
        rows, labels = items.rows, items.given
        if labels.ndim > 1:
            holders, labels = np.nonzero(labels)
            rows = rows[holders]
        order = np.lexsort((labels, counts[labels], rows))  # a row's rarest label first; of equally rare ones the first
        rows, where = np.unique(rows[order], return_index=True)
        rarest = labels[order][where]
        is_rarer = counts[rarest] < fewest[rows]
        found[rows[is_rarer]], fewest[rows[is_rarer]] = first + rarest[is_rarer], counts[rarest[is_rarer]]
        first += len(task.labels)
    return found


def folds(groups: Sequence[np.ndarray], codes: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Deal the rows of several datasets into folds.

    Args:
        groups: for each dataset [rows], numbers of texts: rows with the same one are in the same fold, also those of
            other datasets.
        codes: for each dataset [rows], numbers of what each fold has its part of; of a text, that of its first row.
        count: how many folds.
        seed: of the order in which texts are dealt.

    Returns:
        for each dataset [rows] the fold of each row. Where no text repeats, folds differ by a row at most, in all and
        of each code. One may be empty where there are fewer texts than folds.
    """
    dealt = np.full(1 + max((int(group.max(initial=-1)) for group in groups), default=-1), -1)
    found = []
    for group, code in zip(groups, codes, strict=True):
        texts, firsts, sizes = np.unique(group, return_index=True, return_counts=True)
        order = np.random.default_rng([seed, count, len(group)]).permutation(len(texts))
        order = order[dealt[texts[order]] < 0]  # others were dealt with a dataset before
        order = order[np.argsort(code[firsts[order]], kind="stable")]
        rows, before, of_code = [0] * count, None, [0] * count
        for text in order.tolist():
            if code[firsts[text]] != before:
                before, of_code = code[firsts[text]], [0] * count
            fold = min(range(count), key=lambda one: (of_code[one], rows[one]))
            dealt[texts[text]] = fold
            of_code[fold] += int(sizes[text])
            rows[fold] += int(sizes[text])
        found.append(dealt[group])
    return found


def part_of(split: EncodedSplit, places: np.ndarray) -> EncodedSplit:
    """The rows of a split at ascending ``places``; the split is whole, and has no answers of teachers."""
    assert split.rows._indices is None, "rows as they were encoded"
    assert not split.soft, "rows that no teacher was asked for"
    return replace(split, source=split.source.take(places), rows=rows_at(split.rows, places))
