"""From rows to tensors: windows, micro-batches, labels, counts."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from nlp_mtl.data.encoding import EncodedSplit, label_column
from nlp_mtl.data.labels import MISSING
from nlp_mtl.data.layout import MICRO_BATCH_COST, layout
from nlp_mtl.data.sampling import Sampler, StepPlan
from nlp_mtl.data.tokenization import Window, special_ids, windows
from nlp_mtl.tasks import Task


class Framing(NamedTuple):
    """What stands around and limits the pieces of a window; the encoder's and tokenizer's, not the data's."""

    prefix: list[int]
    """Special tokens before a text."""
    suffix: list[int]
    pad_id: int
    max_length: int
    """Tokens in a window, special tokens counted."""
    window_overlap: int

    @property
    def capacity(self) -> int:
        """Pieces that fit into a window."""
        return self.max_length - len(self.prefix) - len(self.suffix)

    def windows(self, starts: Sequence[int], num_pieces: int) -> list[Window]:
        """The windows of a text; see :func:`nlp_mtl.data.tokenization.windows`."""
        return windows(starts, num_pieces, self.capacity, self.window_overlap)


def frame(tokenizer: PreTrainedTokenizerBase, max_length: int, window_overlap: int) -> Framing:
    """The framing that a tokenizer and a model's settings give."""
    prefix, suffix = special_ids(tokenizer)
    pad_id = tokenizer.pad_token_id
    return Framing(prefix, suffix, 0 if pad_id is None else int(pad_id), max_length, window_overlap)


class Item(NamedTuple):
    """One window of one row: what goes through the encoder."""

    place: int
    """The row's place among the rows given."""
    window: Window
    share: float
    """1 / the number of windows of the row."""
    pieces: Sequence[int]
    starts: Sequence[int]
    labels: Mapping[str, Sequence[int]]
    """``{task: label ids}`` of the whole row; see :class:`nlp_mtl.data.encoding.EncodedSplit`."""


class TaskRows(NamedTuple):
    """The rows of a micro-batch that carry a task's labels."""

    rows: Tensor
    """[r] Their places in the micro-batch; may be none."""
    labels: Tensor
    """Label ids: [r, tokens] for token tasks, MISSING where no word starts; [r] for text tasks."""
    weights: Tensor
    """[r] What each row counts: 1, or its share where a text task's row was cut into windows."""


class MicroBatch(NamedTuple):
    """Tensors of one pass through the encoder."""

    inputs: dict[str, Tensor]
    """``input_ids`` and ``attention_mask``, [rows, tokens]."""
    tasks: dict[str, TaskRows]
    """All tasks, also those of which no row carries labels."""


class StepBatches(NamedTuple):
    """What one process computes in one step."""

    step: int
    micro_batches: list[MicroBatch]
    counts: dict[str, int]
    """``{task: labelled items in the whole step}``, over all processes."""


def read_items(
    split: EncodedSplit,
    rows: Sequence[int] | np.ndarray,
    tasks: Sequence[Task],
    framing: Framing,
    first_place: int = 0,
) -> list[Item]:
    """The windows of rows of a split, in order."""
    batch = split.rows[np.asarray(rows)]
    present = [task.name for task in tasks if task.name in split.labelled]
    items = []
    for offset, (pieces, starts) in enumerate(zip(batch["pieces"], batch["starts"], strict=True)):
        labels = {name: batch[label_column(name)][offset] for name in present}
        items += windowed(first_place + offset, pieces, starts, labels, framing)
    return items


def windowed(
    place: int,
    pieces: Sequence[int],
    starts: Sequence[int],
    labels: Mapping[str, Sequence[int]],
    framing: Framing,
) -> list[Item]:
    """The items of one row."""
    found = framing.windows(starts, len(pieces))
    return [Item(place, window, 1 / len(found), pieces, starts, labels) for window in found]


def item_lengths(items: Sequence[Item], framing: Framing) -> np.ndarray:
    """[items] Tokens of each item, special tokens counted; at least 1, as :func:`collate` makes them."""
    specials = len(framing.prefix) + len(framing.suffix)
    return np.array([max(item.window.stop - item.window.start + specials, 1) for item in items], dtype=np.int64)


def collate(items: Sequence[Item], tasks: Sequence[Task], framing: Framing) -> MicroBatch:
    """A padded micro-batch.

    Without items it holds one row of special tokens and no labels: a process that has nothing to learn in a
    step still runs the encoder, so that its gradients take part.
    """
    texts = [item.pieces[item.window.start : item.window.stop] for item in items] or [[]]
    rows = [[*framing.prefix, *text, *framing.suffix] or [framing.pad_id] for text in texts]
    lengths = np.array([len(row) for row in rows])
    input_ids = np.full((len(rows), lengths.max()), framing.pad_id, dtype=np.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = row
    attention_mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
    return MicroBatch(inputs, {task.name: _task_rows(task, items, input_ids.shape[1], framing) for task in tasks})


def word_positions(item: Item, framing: Framing) -> np.ndarray:
    """[words] Where the words that an item answers stand in its row of the micro-batch."""
    starts = np.asarray(item.starts[item.window.first_word : item.window.last_word], dtype=np.int64)
    return starts - item.window.start + len(framing.prefix)


def _task_rows(task: Task, items: Sequence[Item], num_tokens: int, framing: Framing) -> TaskRows:
    rows = [row for row, item in enumerate(items) if _carries(task, item)]
    if task.type == "token-classification":
        labels = np.full((len(rows), num_tokens), MISSING, dtype=np.int64)
        for place, row in enumerate(rows):
            window = items[row].window
            ids = items[row].labels[task.name][window.first_word : window.last_word]
            labels[place, word_positions(items[row], framing)] = ids
        weights = np.ones(len(rows), dtype=np.float32)
    else:
        labels = np.array([items[row].labels[task.name][0] for row in rows], dtype=np.int64)
        weights = np.array([items[row].share for row in rows], dtype=np.float32)
    return TaskRows(torch.tensor(rows, dtype=torch.long), torch.from_numpy(labels), torch.from_numpy(weights))


def _carries(task: Task, item: Item) -> bool:
    """Whether an item holds a label of the task."""
    labels = item.labels.get(task.name, ())
    if task.type == "token-classification":
        labels = labels[item.window.first_word : item.window.last_word]
    return any(label != MISSING for label in labels)


class StepDataset(Dataset[StepBatches]):
    """The steps of a run, laid out for one process: item number ``step`` is a pure function of the step.

    Where threads share a process's part, its micro-batches are theirs by turns.
    """

    def __init__(
        self,
        splits: Sequence[EncodedSplit],
        sampler: Sampler,
        tasks: Sequence[Task],
        framing: Framing,
        *,
        max_tokens: int,
        micro_batch_cost: int = MICRO_BATCH_COST["cpu"],
        process: int = 0,
        num_processes: int = 1,
        num_threads: int = 1,
    ) -> None:
        self.splits = splits
        self.sampler = sampler
        self.tasks = tasks
        self.framing = framing
        self.max_tokens = max_tokens
        self.micro_batch_cost = micro_batch_cost
        self.process = process
        self.num_processes = num_processes
        self.num_threads = num_threads

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, step: int) -> StepBatches:
        plan = self.sampler[step]
        items = self.items(plan)
        laid_out = self.layout(item_lengths(items, self.framing))
        micro_batches = [collate([items[i] for i in batch], self.tasks, self.framing) for batch in laid_out]
        return StepBatches(step, micro_batches, self.counts(plan))

    def layout(self, lengths: np.ndarray) -> list[np.ndarray]:
        """The micro-batches of this process, as places of items. ``lengths``: [items of the step], in tokens."""
        shares = layout(lengths, self.num_processes * self.num_threads, self.max_tokens, self.micro_batch_cost)
        of_threads = shares[self.process * self.num_threads : (self.process + 1) * self.num_threads]
        batches = [batch for round in zip(*of_threads, strict=True) for batch in round]
        # Threads, unlike processes, need not all have something to run.
        return [batch for batch in batches if len(batch)] if self.num_threads > 1 else batches

    def items(self, plan: StepPlan) -> list[Item]:
        """The windows of a plan's rows; ``place`` counts rows, dataset by dataset."""
        items: list[Item] = []
        num_rows = 0
        for dataset in np.unique(plan.datasets):
            rows = plan.rows[plan.datasets == dataset]
            items += read_items(self.splits[dataset], rows, self.tasks, self.framing, num_rows)
            num_rows += len(rows)
        return items

    def counts(self, plan: StepPlan) -> dict[str, int]:
        """``{task: labelled items}`` of a plan: what losses are divided by, on every process alike."""
        counts = {task.name: 0 for task in self.tasks}
        for dataset in np.unique(plan.datasets):
            rows = plan.rows[plan.datasets == dataset]
            for task, labelled in self.splits[dataset].labelled.items():
                counts[task] += int(labelled[rows].sum())
        return counts

    def digest(self) -> str:
        """What tells other training data from these: tokens and labels of every row, dataset by dataset."""
        parts = [split.digest() for split in self.splits]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def where(self, plan: StepPlan, task: str) -> list[str]:
        """The places of a plan's rows that carry a task's labels, for messages."""
        found: list[Any] = []
        for dataset, row in zip(plan.datasets, plan.rows, strict=True):
            split = self.splits[dataset]
            if task in split.labelled and split.labelled[task][row]:
                found.append(split.source.where(int(row)))
        return found
