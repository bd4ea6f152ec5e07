"""Splits as sub-words and label ids: what later layouts read."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from nlp_mtl.data.loading import LoadedSplit
from nlp_mtl.data.streaming import Stream
from nlp_mtl.task_types import KINDS, kind_of
from nlp_mtl.tasks import MISSING, Task, TaskType


@dataclass(frozen=True)
class EncodedSplit:
    """One split of a dataset as token ids and label ids.

    ``rows`` has the columns ``pieces`` (token ids without special tokens), ``starts`` (the place of each
    word's first piece) and, for each task, ``labels/TASK``: its :data:`nlp_mtl.task_types.kind.Target`, which is a
    list of label ids, one a word, or a list of one for text classification; MISSING where there is none, an empty list
    where the row has no label at all. Of pairs of texts, ``pieces`` and ``starts`` are those of both, and ``second``
    is a list of the place where the second one begins.
    """

    source: LoadedSplit
    rows: datasets.Dataset
    tasks: Mapping[str, TaskType]
    """The tasks that read labels here, and their types."""
    soft: Mapping[str, "Taught"] = field(default_factory=dict)
    """The tasks that learn from a teacher here."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Mapping[str, list[Any]]:
        """The columns of some rows, and those of the answers of their teachers."""
        found = dict(self.rows[np.asarray(rows)])
        for answers in {id(taught.answers): taught.answers for taught in self.soft.values()}.values():
            found |= answers[np.asarray(rows)]
        return found

    def where(self, row: int) -> str:
        """A row's place, in words a user can follow."""
        return self.source.where(row)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[rows] Pieces of each row. Training asks for ``labelled`` never, and for these where hidden states are kept:
        both are held in memory."""
        return _list_lengths(self.rows, "pieces")

    @cached_property
    def labelled(self) -> dict[str, np.ndarray]:
        """``{task: [rows]}`` Labelled items of each row: words, or 1 for a text."""
        return {
            task: _count_labels(self.rows, label_column(task))
            if KINDS[type].reads_words
            else np.minimum(_list_lengths(self.rows, label_column(task)), 1)
            for task, type in self.tasks.items()
        }

    def label_counts(self, task: Task) -> np.ndarray:
        """[labels] How often each label of a task with a label set occurs."""
        counts = np.zeros(len(task.labels), dtype=np.int64)
        for _, ids in lists(self.rows, label_column(task.name)):
            if kind_of(task).label_set == "many":
                counts += ids.reshape(-1, len(task.labels)).sum(axis=0)
            else:
                counts += np.bincount(ids[ids != MISSING], minlength=len(task.labels))
        return counts

    def numbers(self, task: Task) -> np.ndarray:
        """[labelled rows] The numbers of a task without a label set."""
        return np.concatenate([np.zeros(0), *(values for _, values in lists(self.rows, label_column(task.name)))])

    def classes(self, task: str) -> np.ndarray:
        """[rows] The label of each row for a text task; MISSING where there is none."""
        found = np.full(len(self), MISSING, dtype=np.int32)
        place = 0
        for sizes, ids in lists(self.rows, label_column(task)):
            found[place : place + len(sizes)][sizes > 0] = ids  # one a text, or none
            place += len(sizes)
        return found

    def joint_counts(self, one: Task, other: Task) -> np.ndarray:
        """[labels of one task, labels of another] How often an item has each two labels, of tasks with one an item.

        Items are words where one of the two labels words; a text's label then stands for each of its words.
        """
        counts = np.zeros((len(one.labels), len(other.labels)), dtype=np.int64)
        columns = [lists(self.rows, label_column(task.name)) for task in (one, other)]
        for (sizes, ids), (other_sizes, other_ids) in zip(*columns, strict=True):
            both = (sizes > 0) & (other_sizes > 0)
            items = np.maximum(sizes, other_sizes)[both]
            first = _spread(ids[np.repeat(both, sizes)], sizes[both], items)
            second = _spread(other_ids[np.repeat(both, other_sizes)], other_sizes[both], items)
            labelled = (first != MISSING) & (second != MISSING)
            np.add.at(counts, (first[labelled], second[labelled]), 1)
        return counts

    def digest(self, columns: Collection[str] | None = None) -> str:
        """A checksum of all tokens and labels, or of those of these columns that there are."""
        digest = hashlib.sha256()
        for task, taught in sorted(self.soft.items()) if columns is None else ():
            # Logits themselves may differ in their last bits.
            digest.update(f"{task}:{taught.teacher}:{taught.beyond_labels}:{taught.order}:".encode())
        there = {*self.rows.column_names}
        for column in sorted(there if columns is None else there & {*columns}):
            digest.update(f"{column}:{len(self)}:".encode())
            for sizes, values in lists(self.rows, column):
                digest.update(sizes.tobytes() + values.tobytes())
        return digest.hexdigest()


class Taught(NamedTuple):
    """Whose answers a task learns from in a split."""

    teacher: str
    """A checksum of all that they depend on, but for the rows."""
    beyond_labels: bool
    """Whether rows and words without a label of the task are learned from, too."""
    answers: datasets.Dataset
    """Its logits of each row, see :func:`nlp_mtl.data.soft_targets.soft_column`."""
    order: tuple[int, ...]
    """Where in its logits each label of the task stands."""


@dataclass(frozen=True)
class StreamedSplit:
    """Training rows that come from a stream, encoded as they are asked for; see :class:`EncodedSplit`."""

    source: Stream
    encode: "Encode"
    tasks: Mapping[str, TaskType]
    soft: Mapping[str, Taught] = field(default_factory=dict)
    """Nothing: a teacher is asked before training."""

    def batch(self, rows: Sequence[int] | np.ndarray) -> Mapping[str, list[Any]]:
        """The columns of some rows, given by ascending positions.

        Raises:
            DataError: they cannot be read, or labels do not fit words, or are unknown.
        """
        return self.encode(self.source.batch(rows), list(map(int, rows)), self.source.where)

    def where(self, row: int) -> str:
        """A row's place, in words a user can follow."""
        return self.source.where(row)

    def digest(self) -> str:
        """What is known of it before it is read."""
        return self.source.digest()


Split = EncodedSplit | StreamedSplit
"""What steps are made of."""

Encode = Callable[[Mapping[str, list[Any]], Sequence[int], Callable[[int], str]], dict[str, list[Any]]]
"""Rows as columns, their places, and how to tell a place: to the columns of :class:`EncodedSplit`."""


def label_column(task: str) -> str:
    """The name of a task's column in an encoded split."""
    return f"labels/{task}"


def lists(rows: datasets.Dataset, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A column of lists, 10,000 rows at a time: ``(items in each row's list, all items)``."""
    for batch in rows.select_columns([column]).with_format("arrow").iter(10_000):
        array = batch.column(0).combine_chunks()
        sizes, items = array.value_lengths().to_numpy().astype(np.int32), array.flatten()
        yield sizes, items.to_numpy().astype(np.float64 if pa.types.is_floating(items.type) else np.int32)


def _spread(ids: np.ndarray, sizes: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Labels one an item: those of words as they are, a text's again and again."""
    return np.repeat(ids, np.repeat(np.where(sizes == items, 1, items), sizes))


def _list_lengths(rows: datasets.Dataset, column: str) -> np.ndarray:
    """[rows] Items in each row's list."""
    return np.concatenate([np.zeros(0, dtype=np.int32), *(sizes for sizes, _ in lists(rows, column))])


def _count_labels(rows: datasets.Dataset, column: str) -> np.ndarray:
    """[rows] Labels in each row's list that are not MISSING."""
    parts = [np.zeros(0, dtype=np.int32)]
    for sizes, ids in lists(rows, column):
        given = np.concatenate([[0], np.cumsum(ids != MISSING)])
        ends = np.concatenate([[0], np.cumsum(sizes)])
        parts.append(np.diff(given[ends]).astype(np.int32))
    return np.concatenate(parts)
