"""Items: the windows of rows, each of which goes through the encoder once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlp_mtl.data.encoding import Split, label_column
from nlp_mtl.data.tokenization import Window, special_ids, windows
from nlp_mtl.task_types.kind import Target
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
    labels: Mapping[str, Target]
    """``{task: target}`` of the whole row; see :class:`nlp_mtl.data.encoding.EncodedSplit`."""


def read_items(
    split: Split,
    rows: Sequence[int] | np.ndarray,
    tasks: Sequence[Task],
    framing: Framing,
    first_place: int = 0,
) -> list[Item]:
    """The windows of rows of a split, in order."""
    batch = split.batch(rows)
    present = [task.name for task in tasks if task.name in split.tasks]
    items = []
    for offset, (pieces, starts) in enumerate(zip(batch["pieces"], batch["starts"], strict=True)):
        labels = {name: batch[label_column(name)][offset] for name in present}
        items += windowed(first_place + offset, pieces, starts, labels, framing)
    return items


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


def item_lengths(items: Sequence[Item], framing: Framing) -> np.ndarray:
    """[items] Tokens of each item, special tokens counted; at least 1, as a micro-batch has them."""
    specials = len(framing.prefix) + len(framing.suffix)
    return np.array([max(item.window.stop - item.window.start + specials, 1) for item in items], dtype=np.int64)


def word_positions(item: Item, framing: Framing) -> np.ndarray:
    """[words] Where the words that an item answers stand in its row of the micro-batch."""
    starts = np.asarray(item.starts[item.window.first_word : item.window.last_word], dtype=np.int64)
    return starts - item.window.start + len(framing.prefix)
