"""Episodes: small tasks made of a run's tasks, each with few rows to learn from and others to be tried on.

An episode of a text task knows some of its labels and holds rows of these; of IOB tags, some kinds of spans, all others
being ``O``; of other labels of words, some labels, words with others not counting. Which, and which rows, is a pure
function of the seed and the episode's number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from nlp_mtl.data.encoded_splits import EncodedSplit, label_column, lists
from nlp_mtl.data.items import Item
from nlp_mtl.errors import DataError
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import MISSING, Task


class EpisodeShape(NamedTuple):
    """What an episode holds."""

    ways: int
    """Labels at most; how many is drawn, from 2 on (of kinds of spans, from 1 on, as ``O`` is there as well)."""
    shots: int
    """Rows a label to learn from; fewer only where an episode has no more labels than it must, and they share rows."""
    query: int
    """Other rows a label, to be tried on; as many as are left, likewise."""


class EpisodePlan(NamedTuple):
    """An episode, before its rows are read."""

    task: Task
    """With the labels that it knows."""
    ids: np.ndarray
    """[labels of the whole task] What each label is in the episode; MISSING: nothing."""
    support: np.ndarray
    """Rows to learn from, in the order in which they come."""
    query: np.ndarray
    """Rows to be tried on."""


class EpisodeSource:
    """Draws episodes of a task from a split."""

    def __init__(self, split: EncodedSplit, task: Task, shape: EpisodeShape) -> None:
        """
        Raises:
            DataError: there are too few rows.
        """
        self.split, self.task, self.shape = split, task, shape
        least, found = (1 if task.is_spans else 2), len(self._groups)
        if found < least:
            what = "kinds of spans" if task.is_spans else "labels"
            raise DataError(
                f"{split.source.title}: {found} of the {what} of task `{task.name}` have {shape.shots + shape.query} "
                f"rows or more, and an episode needs {least}: lower meta.shots or meta.query"
            )

    @cached_property
    def _groups(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """``(ids of labels, rows in which they occur)`` of each label, or kind of span, that has enough rows."""
        rows = rows_with(self.split, self.task)
        ids: dict[str, list[int]] = {}
        for place, label in enumerate(self.task.labels):
            if not (self.task.is_spans and label == "O"):
                ids.setdefault(label[2:] if self.task.is_spans else label, []).append(place)
        found = [(tuple(group), np.unique(np.concatenate([rows[one] for one in group]))) for group in ids.values()]
        return [(group, rows) for group, rows in found if len(rows) >= self.shape.shots + self.shape.query]

    def __call__(self, draw: np.random.Generator) -> EpisodePlan:
        """An episode."""
        count, least = len(self._groups), 1 if self.task.is_spans else 2
        ways = int(draw.integers(least, max(least, min(self.shape.ways, count)) + 1))
        support: list[np.ndarray] = []
        query: list[np.ndarray] = []
        known: list[int] = [self.task.labels.index("O")] if self.task.is_spans and "O" in self.task.labels else []
        used: list[int] = []
        order = draw.permutation(count).tolist()
        # Where labels share rows, one may have too few left: others come first.
        for needed, most in ((self.shape.shots + self.shape.query, ways), (0, least)):
            for chosen in order:
                ids, rows = self._groups[chosen]
                left = np.setdiff1d(rows, np.concatenate([*support, *query, np.zeros(0, dtype=np.int64)]))
                if len(used) >= most or chosen in used or len(left) < needed:
                    continue
                used.append(chosen)
                known += ids
                # A row of words can hold several labels, and is in one place alone.
                left = draw.permutation(left)
                support.append(left[: self.shape.shots])
                query.append(left[self.shape.shots : self.shape.shots + self.shape.query])
        known = sorted(known)
        return EpisodePlan(
            episode_task(self.task, known), episode_ids(self.task, known),
            draw.permutation(np.concatenate(support)), np.concatenate(query),
        )  # fmt: skip


def rows_with(split: EncodedSplit, task: Task) -> list[np.ndarray]:
    """[labels] The rows of a split in which each label of a task occurs."""
    found: list[list[np.ndarray]] = [[np.zeros(0, dtype=np.int64)] for _ in task.labels]
    start = 0
    for sizes, ids in lists(split.rows, label_column(task.name)):
        rows = start + np.repeat(np.arange(len(sizes)), sizes)
        for label, parts in enumerate(found):
            parts.append(np.unique(rows[ids == label]))
        start += len(sizes)
    return [np.concatenate(parts) for parts in found]


def episode_task(task: Task, known: Sequence[int]) -> Task:
    """A task with some of its labels."""
    weights = tuple(task.loss.class_weights[one] for one in known) if task.loss.class_weights else ()
    return replace(
        task, labels=tuple(task.labels[one] for one in known), loss=task.loss._replace(class_weights=weights)
    )


def episode_ids(task: Task, known: Sequence[int]) -> np.ndarray:
    """[labels] What each label of a task is where some are known: its place there, else ``O``, or MISSING."""
    outside = [*known].index(task.labels.index("O")) if task.is_spans and "O" in task.labels else MISSING
    ids = np.full(len(task.labels), outside, dtype=np.int64)
    ids[[*known]] = np.arange(len(known))
    return ids


def relabelled(items: Sequence[Item], plan: EpisodePlan) -> list[Item]:
    """Items with the labels of an episode's task alone, by their ids there."""
    name = plan.task.name
    found = []
    for item in items:
        labels = [MISSING if one == MISSING else int(plan.ids[int(one)]) for one in item.labels[name]]
        found.append(item._replace(labels={name: labels}))
    return found


def passes(rows: np.ndarray, batch_size: int, num_batches: int, draw: np.random.Generator) -> list[np.ndarray]:
    """Batches of rows: inside a pass each row comes once, each pass in an order of its own."""
    size = min(batch_size, len(rows))
    order = list(rows)
    while len(order) < size * num_batches:
        order += draw.permutation(rows).tolist()
    return [np.array(order[place * size : (place + 1) * size], dtype=np.int64) for place in range(num_batches)]


def learnable(tasks: Sequence[Task], split: EncodedSplit) -> dict[str, float]:
    """``{task: how often its episodes come}`` of a split's tasks; those without a loss weight are not learned."""
    weights: Mapping[str, float] = {task.name: task.loss_weight for task in tasks if task.name in split.tasks}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight}


def items_of(task: Task, items: Sequence[Item]) -> int:
    """Labelled items of rows: what a summed loss is divided by."""
    kind = kind_of(task)
    rows = {item.place: item.labels[task.name] for item in items}
    return sum(kind.num_items(target) for target in rows.values())
