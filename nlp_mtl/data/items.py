"""Items: the windows of rows, each of which goes through the encoder once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlp_mtl.data.encoded_splits import Split, label_column
from nlp_mtl.data.soft_targets import SoftTarget, soft_column, soft_target
from nlp_mtl.data.tokenization import PairFraming, Window, pair_framing, pair_lengths, special_ids, windows
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.kind import Target
from nlp_mtl.tasks import MISSING, Task


class Framing(NamedTuple):
    """What stands around and limits the pieces of a window; the encoder's and tokenizer's, not the data's."""

    prefix: list[int]
    """Special tokens before a text."""
    suffix: list[int]
    pad_id: int
    max_length: int
    """Tokens in a window, special tokens counted."""
    window_overlap: int
    pair: PairFraming | None = None
    """Around and between the texts of a pair."""

    @property
    def capacity(self) -> int:
        """Pieces that fit into a window."""
        return self.max_length - self.num_specials()

    @property
    def pair_capacity(self) -> int:
        """Pieces of both texts of a pair that fit."""
        return self.max_length - self.num_specials(is_pair=True)

    def num_specials(self, *, is_pair: bool = False) -> int:
        """Special tokens of a text, or of a pair."""
        if not is_pair:
            return len(self.prefix) + len(self.suffix)
        assert self.pair is not None
        return len(self.pair.prefix) + len(self.pair.middle) + len(self.pair.suffix)

    def windows(self, starts: Sequence[int], num_pieces: int) -> list[Window]:
        """The windows of a text; see :func:`nlp_mtl.data.tokenization.windows`."""
        return windows(starts, num_pieces, self.capacity, self.window_overlap)


def frame(tokenizer: PreTrainedTokenizerBase, max_length: int, window_overlap: int) -> Framing:
    """The framing that a tokenizer and a model's settings give."""
    prefix, suffix = special_ids(tokenizer)
    pad_id = tokenizer.pad_token_id
    pair = pair_framing(tokenizer)
    return Framing(prefix, suffix, 0 if pad_id is None else int(pad_id), max_length, window_overlap, pair)


class Item(NamedTuple):
    """One window of one row: what goes through the encoder."""

    place: int
    """The row's place among the rows given."""
    window: Window
    share: float
    """1 / the number of windows of the row."""
    pieces: Sequence[int]
    starts: Sequence[int]
    labels: Mapping[str, Target]
    """``{task: target}`` of the whole row; see :class:`nlp_mtl.data.encoded_splits.EncodedSplit`."""
    second: int | None = None
    """Where the second text of a pair begins among its pieces; None: it is no pair."""
    soft: Mapping[str, SoftTarget] = {}
    """``{task: what its teacher says}`` of the whole row."""


def read_items(
    split: Split,
    rows: Sequence[int] | np.ndarray,
    tasks: Sequence[Task],
    framing: Framing,
    first_place: int = 0,
    change: Callable[[Mapping[str, list[Any]]], Mapping[str, list[Any]]] | None = None,
) -> list[Item]:
    """The windows of rows of a split, in order.

    Args:
        change: what is done to their columns before.
    """
    batch = split.batch(rows)
    if change is not None:
        batch = change(batch)
    present = [task.name for task in tasks if task.name in split.tasks]
    taught = [task for task in tasks if task.name in split.soft]
    items = []
    for offset, (pieces, starts) in enumerate(zip(batch["pieces"], batch["starts"], strict=True)):
        labels = {name: batch[label_column(name)][offset] for name in present}
        if "second" in batch:
            found = [paired(first_place + offset, pieces, batch["second"][offset][0], labels, framing)]
        else:
            found = windowed(first_place + offset, pieces, starts, labels, framing)
        if taught:
            soft = {task.name: _soft(task, split, batch, offset, labels) for task in taught}
            found = [item._replace(soft=soft) for item in found]
        items += found
    return items


def _soft(
    task: Task, split: Split, batch: Mapping[str, list[Any]], offset: int, labels: Mapping[str, Target]
) -> SoftTarget:
    """What a task's teacher says of a row."""
    taught = split.soft[task.name]
    is_labelled = None if taught.beyond_labels else is_target(task, labels[task.name])
    return soft_target(batch[soft_column(task.name)][offset], taught.order, is_labelled)


def windowed(
    place: int,
    pieces: Sequence[int],
    starts: Sequence[int],
    labels: Mapping[str, Target],
    framing: Framing,
) -> list[Item]:
    """The items of one row."""
    found = framing.windows(starts, len(pieces))
    return [Item(place, window, 1 / len(found), pieces, starts, labels) for window in found]


def paired(place: int, pieces: Sequence[int], second: int, labels: Mapping[str, Target], framing: Framing) -> Item:
    """The one item of a row of two texts: a window could not show both, so what does not fit is cut.

    Args:
        second: where the second text's pieces begin.
    """
    first_length, second_length = pair_lengths(second, len(pieces) - second, framing.pair_capacity)
    kept = [*pieces[:first_length], *pieces[second : second + second_length]]
    return Item(place, Window(0, len(kept), 0, 0), 1.0, kept, [], labels, first_length)


def carries(item: Item, task: Task) -> bool:
    """Whether an item holds something that a task learns from; of words, one that its window answers."""
    kind, target = kind_of(task), item.labels.get(task.name, [])
    words = slice(item.window.first_word, item.window.last_word) if kind.reads_words else slice(None)
    if item.soft and (soft := item.soft.get(task.name)):
        return bool(soft.is_taught[words].any())
    return kind.num_items(target[words]) > 0


def num_targets(item: Item, task: Task) -> int:
    """Of how many words a task learns from an item's whole row, or 1 for a text."""
    if item.soft and (soft := item.soft.get(task.name)):
        return int(soft.is_taught.sum())
    return kind_of(task).num_items(item.labels.get(task.name, []))


def is_target(task: Task, target: Target) -> np.ndarray:
    """[words] or [1] Whether there is a label."""
    return np.asarray(target) != MISSING if kind_of(task).reads_words else np.array([len(target) > 0])


def item_lengths(items: Sequence[Item], framing: Framing) -> np.ndarray:
    """[items] Tokens of each item, special tokens counted; at least 1, as a micro-batch has them."""
    lengths = [
        item.window.stop - item.window.start + framing.num_specials(is_pair=item.second is not None) for item in items
    ]
    return np.array([max(length, 1) for length in lengths], dtype=np.int64)


def word_positions(item: Item, framing: Framing) -> np.ndarray:
    """[words] Where the words that an item answers stand in its row of the micro-batch."""
    starts = np.asarray(item.starts[item.window.first_word : item.window.last_word], dtype=np.int64)
    return starts - item.window.start + len(framing.prefix)
