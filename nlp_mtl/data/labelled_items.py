"""The labelled items of a split, one behind the other: words, or texts, with the labels that they were given."""

from typing import NamedTuple

import numpy as np

from nlp_mtl.data.encoded_splits import EncodedSplit, label_column, lists
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import MISSING, Task


class LabelledItems(NamedTuple):
    """Items of one task in one split, by rows and words."""

    rows: np.ndarray
    """[items] The place of each item's row in the split, ascending."""
    words: np.ndarray
    """[items] Which word of its row it is; 0 for a text."""
    given: np.ndarray
    """[items] The id of its label; [items, labels] 0 or 1, where an item has several."""

    def __len__(self) -> int:
        return len(self.rows)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The places of the items of some rows; the rows ascend."""
        starts, ends = (np.searchsorted(self.rows, rows, side=side) for side in ("left", "right"))
        counts = ends - starts
        return np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())


def labelled_items(split: EncodedSplit, task: Task) -> LabelledItems:
    """The labelled items of a task that reads labels in the split, and has a label set."""
    kind, first, parts = kind_of(task), 0, []
    for sizes, ids in lists(split.rows, label_column(task.name)):
        rows = first + np.repeat(np.arange(len(sizes)), sizes)
        words = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if kind.label_set == "many":
            ids = ids.reshape(-1, len(task.labels))
            rows = rows.reshape(ids.shape)[:, 0]
            parts.append((rows, np.zeros_like(rows), ids))
        else:
            is_labelled = ids != MISSING
            parts.append((rows[is_labelled], words[is_labelled], ids[is_labelled]))
        first += len(sizes)
    none = np.zeros((0, len(task.labels)) if kind.label_set == "many" else 0, dtype=np.int32)
    empty = np.zeros(0, dtype=np.int64)
    columns = zip((empty, empty, none), *parts, strict=True)
    return LabelledItems(*(np.concatenate(column) for column in columns))
