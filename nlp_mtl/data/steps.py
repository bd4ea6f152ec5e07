"""The steps of a run as data: planned, cut into micro-batches, dealt to a process."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from nlp_mtl.data.augmentation import Augmenter
from nlp_mtl.data.batches import MicroBatch, collate
from nlp_mtl.data.encoded_splits import Split, StreamedSplit, label_column
from nlp_mtl.data.items import Framing, Item, carries, item_lengths, num_targets, read_items
from nlp_mtl.data.kept_states import KeptStates, sources_of, states_to_learn_from
from nlp_mtl.data.layout import MICRO_BATCH_COST, bucketed, layout, pack
from nlp_mtl.data.sampling import Sampler, StepPlan
from nlp_mtl.data.soft_targets import Teaching
from nlp_mtl.data.streaming import Cursor, Stream
from nlp_mtl.task_types import KINDS
from nlp_mtl.tasks import Task


class Episode(NamedTuple):
    """A small task; see :mod:`nlp_mtl.data.episodes`."""

    task: Task
    """With the labels that it knows."""
    seed: list[int]
    """Of its head and of dropout."""
    inner: list[tuple[list[MicroBatch], int]]
    """What each inner step learns from, and its labelled items."""
    query: tuple[list[MicroBatch], int]
    """The same of the rows that it is tried on."""


class StepBatches(NamedTuple):
    """What one process computes in one step."""

    step: int
    micro_batches: list[MicroBatch]
    counts: dict[str, int]
    """``{task: labelled items in the whole step}``, over all processes."""
    num_tokens: int
    """Tokens of the whole step, over all processes, padding not counted."""
    cursors: dict[str, Cursor]
    """``{streamed dataset: where to read on after this step}``"""
    episodes: Sequence[Episode] = ()
    """In place of micro-batches, in a meta step: those of this process; ``counts`` are then episodes."""


class StepDataset(Dataset[StepBatches]):
    """The steps of a run, laid out for one process: item number ``step`` is a pure function of the step.

    Where threads share a process's part, its micro-batches are theirs by turns.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        sampler: Sampler,
        tasks: Sequence[Task],
        framing: Framing,
        *,
        max_tokens: int,
        micro_batch_cost: int = MICRO_BATCH_COST["cpu"],
        process: int = 0,
        num_processes: int = 1,
        num_threads: int = 1,
        packed: bool = False,
        is_bucketed: bool = False,
        one_set_every: int | None = None,
        augmenters: Mapping[int, Augmenter] | None = None,
        teaching: Teaching | None = None,
        kept: Mapping[int, KeptStates] | None = None,
    ) -> None:
        """
        Args:
            teaching: how tasks learn from teachers, where splits have what those say.
            augmenters: ``{place of a split: what changes its rows as they come}``.
            one_set_every: in every so many steps, a micro-batch holds rows with labels of the same set of tasks; None:
                in no step.
            is_bucketed: padded rows have one of few lengths; see :func:`nlp_mtl.data.layout.bucketed`.
            kept: ``{place of a split: its hidden states}``, of all splits or of none: the encoder is not run, and
                micro-batches are packed.
        """
        self.splits = splits
        self.sampler = sampler
        self.tasks = tasks
        self.framing = framing
        self.max_tokens = max_tokens
        self.micro_batch_cost = micro_batch_cost
        self.process = process
        self.num_processes = num_processes
        self.num_threads = num_threads
        self.packed = packed
        self.is_bucketed = is_bucketed
        self.one_set_every = one_set_every
        self.augmenters = augmenters or {}
        self.teaching = teaching
        self.kept = dict(kept or {})

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, step: int) -> StepBatches:
        plan = self.sampler[step]
        items = self.items(plan)
        lengths = item_lengths(items, self.framing)
        micro_batches = self._collated(plan, items, self.layout_of(step, items, lengths))
        cursors = {stream.dataset: stream.cursor() for stream in self.streams}
        return StepBatches(step, micro_batches, self.counts(items), int(lengths.sum()), cursors)

    def _collated(self, plan: StepPlan, items: Sequence[Item], micro_batches: Sequence[np.ndarray]) -> list[MicroBatch]:
        teaching = self.teaching and self.teaching.at(plan.step, len(self))
        if self.kept:
            order = np.argsort(plan.datasets, kind="stable")  # of places
            rows = [(self.kept[int(plan.datasets[i])], int(plan.rows[i])) for i in order]
            sources, size = sources_of(items, rows), rows[0][0].size
            return [
                states_to_learn_from(
                    [items[i] for i in batch], [sources[i] for i in batch], self.tasks, self.framing, size, teaching
                )
                for batch in micro_batches
            ]
        return [
            collate(
                [items[i] for i in batch],
                self.tasks,
                self.framing,
                packed=self.packed,
                is_bucketed=self.is_bucketed,
                teaching=teaching,
            )
            for batch in micro_batches
        ]

    @property
    def streams(self) -> list[Stream]:
        """Those among the data."""
        return [split.source for split in self.splits if isinstance(split, StreamedSplit)]

    def remember(self, cursors: Mapping[str, Sequence[Any]]) -> None:
        """Learn where to read on in the streams, so that a resumed run need not read what lies before."""
        for stream in self.streams:
            if stream.dataset in cursors:
                stream.remember(Cursor(*cursors[stream.dataset]))

    def layout_of(self, step: int, items: Sequence[Item], lengths: np.ndarray) -> list[np.ndarray]:
        """The micro-batches of this process in a step, as places of its items."""
        is_apart = self.one_set_every is not None and step % self.one_set_every == 0
        return self.layout_of_sets(items, lengths) if is_apart else self.layout(lengths)

    def layout(self, lengths: np.ndarray) -> list[np.ndarray]:
        """The micro-batches of this process, as places of items. ``lengths``: [items of the step], in tokens."""
        shares = self._shared(lengths, self.num_processes * self.num_threads)
        of_threads = shares[self.process * self.num_threads : (self.process + 1) * self.num_threads]
        batches = [batch for round in zip(*of_threads, strict=True) for batch in round]
        # Threads, unlike processes, need not all have something to run.
        return [batch for batch in batches if len(batch)] if self.num_threads > 1 else batches

    def _shared(self, lengths: np.ndarray, num_shares: int) -> list[list[np.ndarray]]:
        if self.packed or self.kept:
            return pack(lengths, num_shares, self.max_tokens)
        return layout(self.row_lengths(lengths), num_shares, self.max_tokens, self.micro_batch_cost)

    def layout_of_sets(self, items: Sequence[Item], lengths: np.ndarray) -> list[np.ndarray]:
        """As :meth:`layout`, but items of a micro-batch have labels of the same tasks; those without are left out.

        A micro-batch goes back once for each of its tasks, so processes need not have as many as each other. Items with
        the same tasks stay together as far as shares stay even: each piece costs a sum of gradients.
        """
        sets = _by_tasks(items, self.tasks)
        costs = [float(lengths[places].sum() * (1 + 2 * len(tasks))) for tasks, places in sets]  # back is twice forward
        num_shares = self.num_processes * self.num_threads
        counts = [max(1, round(cost * num_shares / sum(costs))) for cost in costs]
        while sets and sum(counts) < num_shares:  # no share without a piece
            counts[max(range(len(sets)), key=lambda place: costs[place] / counts[place])] += 1
        pieces: list[tuple[float, list[np.ndarray]]] = []
        for (_, places), cost, count in zip(sets, costs, counts, strict=True):
            found = [[places[batch] for batch in share if len(batch)] for share in self._shared(lengths[places], count)]
            pieces += [(cost / count, share) for share in found if share]
        loads, shares = [0.0] * num_shares, [list[np.ndarray]() for _ in range(num_shares)]
        for cost, piece in sorted(pieces, key=lambda one: -one[0]):
            least = loads.index(min(loads))
            loads[least] += cost
            shares[least] += piece
        own = shares[self.process * self.num_threads : (self.process + 1) * self.num_threads]
        own.sort(key=lambda share: -len(share))  # threads take them by turns
        return [batch for turn in zip_longest(*own) for batch in turn if batch is not None]

    def row_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens of the shortest padded row that each item can stand in."""
        return bucketed(lengths, self.framing.max_length) if self.is_bucketed else lengths

    def items(self, plan: StepPlan) -> list[Item]:
        """The windows of a plan's rows; ``place`` counts rows, dataset by dataset."""
        items: list[Item] = []
        num_rows = 0
        for dataset in np.unique(plan.datasets):
            rows = plan.rows[plan.datasets == dataset]
            augmenter = self.augmenters.get(int(dataset))
            change = None if augmenter is None else partial(augmenter, plan.step, rows)
            items += read_items(self.splits[dataset], rows, self.tasks, self.framing, num_rows, change)
            num_rows += len(rows)
        return items

    def counts(self, items: Sequence[Item]) -> dict[str, int]:
        """``{task: items that it learns from}`` of a plan's rows: what losses are divided by."""
        rows = {item.place: item for item in items}.values()  # each once, whatever its windows
        return {task.name: sum(num_targets(row, task) for row in rows) for task in self.tasks}

    def digest(self) -> str:
        """What tells other training data from these: tokens and labels of every row, dataset by dataset."""
        parts = [split.digest() for split in self.splits]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def where(self, plan: StepPlan, task: str) -> list[str]:
        """The places of a plan's rows that carry a task's labels, for messages."""
        found: list[Any] = []
        for dataset, row in zip(plan.datasets, plan.rows, strict=True):
            split = self.splits[dataset]
            if task not in split.tasks and task not in split.soft:
                continue
            if task in split.soft and split.soft[task].beyond_labels:
                found.append(split.where(int(row)))
                continue
            target = split.batch([int(row)])[label_column(task)][0]
            if KINDS[split.tasks[task]].num_items(target):
                found.append(split.where(int(row)))
        return found


def _by_tasks(items: Sequence[Item], tasks: Sequence[Task]) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """``(tasks, places of the items with labels of just these)``, without items that have no labels."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, item in enumerate(items):
        labelled = tuple(task.name for task in tasks if carries(item, task))
        found.setdefault(labelled, []).append(place)
    return [(names, np.array(places)) for names, places in sorted(found.items()) if names]
