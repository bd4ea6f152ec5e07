"""Last hidden states of an encoder that does not learn, kept on disk: computed once, read in every epoch.

A file (safetensors, memory-mapped) holds those of some rows, and of these the tokens that heads read, in float32. They
stand as those of packed texts do: one text behind the other, without padding.
"""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nlp_mtl.data.batches import MicroBatch, collate
from nlp_mtl.data.items import Framing, Item, item_lengths, word_positions
from nlp_mtl.data.soft_targets import Teaching
from nlp_mtl.errors import RunError, first_line
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

ROWS = 4096
"""In a file, at most. Whoever computes them does so file by file, so that what comes out does not depend on how many
did."""

TOKENS = 2**18
"""Of the rows in a file, at most, unless it holds one row: a file is held in memory while it is computed."""


def first_rows(lengths: np.ndarray) -> list[int]:
    """[files + 1] The first row of each file, and the end of the last one.

    Args:
        lengths: [rows] tokens of each, as :attr:`nlp_mtl.data.encoded_splits.EncodedSplit.lengths` has them.
    """
    ends, found = np.cumsum(lengths, dtype=np.int64), [0]
    while (first := found[-1]) < len(lengths):
        before = ends[first - 1] if first else 0
        fitting = int(np.searchsorted(ends, before + TOKENS, side="right"))
        found.append(min(max(fitting, first + 1), first + ROWS, len(lengths)))
    return found


class TokensRead(NamedTuple):
    """The tokens of a window that heads read."""

    all: bool
    """Some head of texts reads all."""
    first: bool
    """Some head of texts reads the first, and no other."""
    words: bool
    """Some head reads the first sub-word of each word that the window answers."""

    def places(self, item: Item, framing: Framing) -> np.ndarray:
        """[tokens] Where they stand in an item's row, ascending."""
        if self.all:
            return np.arange(int(item_lengths([item], framing)[0]))
        first = [0] if self.first else []
        return np.unique(np.concatenate([first, word_positions(item, framing) if self.words else []])).astype(np.int64)


def tokens_read(tasks: Sequence[Task], first_token_tasks: frozenset[str]) -> TokensRead:
    """Those that the heads of a split's tasks read.

    Args:
        first_token_tasks: as the model has them.
    """
    texts = [task.name for task in tasks if not kind_of(task).reads_words]
    words = any(kind_of(task).reads_words for task in tasks)
    return TokensRead(not set(texts) <= first_token_tasks, bool(texts), words)


class KeptStates:
    """The hidden states of a split."""

    def __init__(self, folder: Path, read: TokensRead, size: int, first_rows: list[int]) -> None:
        """
        Args:
            folder: where the files are.
            size: numbers of a hidden state.
            first_rows: of the files; see :func:`first_rows`.
        """
        self.folder, self.read, self.size, self.first_rows = folder, read, size, first_rows
        self._open: dict[int, Any] = {}

    def file(self, number: int) -> Path:
        """A file, counted from 0."""
        return self.folder / f"rows-{number:05}.safetensors"

    def rows(self, number: int) -> np.ndarray:
        """Those in a file."""
        return np.arange(self.first_rows[number], self.first_rows[number + 1])

    def of(self, row: int, window: int) -> Tensor:
        """[tokens read, hidden] Those of a window of a row, counted from 0.

        Raises:
            RunError: their file is gone, or damaged.
        """
        number = bisect_right(self.first_rows, row) - 1
        place = row - self.first_rows[number]
        if number not in self._open:
            self._open[number] = self._opened(self.file(number))
        states, items, tokens = self._open[number]
        item = items[place] + window
        found: Tensor = states[tokens[item] : tokens[item + 1]]
        return found

    def _opened(self, path: Path) -> tuple[Any, list[int], list[int]]:
        """States, not read yet; where the windows of each row begin, and where the tokens of each window."""
        try:
            file: Any = safe_open(path, "pt")
            items, tokens = (file.get_tensor(name).tolist() for name in ("items", "tokens"))
            return file.get_slice("states"), items, tokens
        except (OSError, SafetensorError) as error:
            found = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read ({first_line(error)})"
            raise RunError(
                f"{path} was there when the run began, and {found}; was it removed meanwhile? Resume the run "
                "(--resume auto): what is missing is computed again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # other processes open their own


class Source(NamedTuple):
    """Where an item's hidden states are."""

    kept: KeptStates
    row: int
    window: int


def sources_of(items: Sequence[Item], rows: Sequence[tuple[KeptStates, int]]) -> list[Source]:
    """The sources of items; ``rows``: those of their places, as their split and their row there."""
    found: list[Source] = []
    for before, item in zip([None, *items], items, strict=False):
        window = found[-1].window + 1 if before is not None and before.place == item.place else 0
        found.append(Source(*rows[item.place], window))
    return found


def states_to_learn_from(
    items: Sequence[Item],
    sources: Sequence[Source],
    tasks: Sequence[Task],
    framing: Framing,
    size: int,
    teaching: Teaching | None = None,
) -> MicroBatch:
    """A micro-batch that needs no encoder: its input is the hidden states of the tokens that heads read, packed.

    Args:
        size: numbers of a hidden state; there may be no items.
        teaching: as in :func:`nlp_mtl.data.batches.collate`.
    """
    hidden, places, _ = _flat(items, sources, framing, size)
    made = collate(items, tasks, framing, packed=True, teaching=teaching)
    rows = {task: rows._replace(rows=places[rows.rows]) for task, rows in made.tasks.items()}
    return MicroBatch({"hidden_states": hidden}, rows)


def states_to_answer(
    items: Sequence[Item], sources: Sequence[Source], tasks: Sequence[Task], framing: Framing
) -> tuple[dict[str, Any], list[int]]:
    """The model's arguments by which the tasks' heads answer all words of items, and all items; and where each item's
    words stand among those of all."""
    hidden, places, starts = _flat(items, sources, framing, sources[0].kept.size)
    of_words = [start + word_positions(item, framing) for start, item in zip(starts, items, strict=True)]
    lengths = item_lengths(items, framing)
    of_texts = np.arange(lengths.max())
    of_texts = np.where(of_texts < lengths[:, None], starts[:, None] + of_texts, -1)
    chosen = {True: torch.from_numpy(np.concatenate(of_words)), False: torch.from_numpy(of_texts)}
    rows = {task.name: places[chosen[kind_of(task).reads_words]] for task in tasks}
    first_words = np.cumsum([0, *map(len, of_words)]).tolist()
    return {"hidden_states": hidden, "rows": rows}, first_words


def _flat(
    items: Sequence[Item], sources: Sequence[Source], framing: Framing, size: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Hidden states of items, [1, tokens read, hidden]; where each token of the items stands among them, -1 for those
    that are not read and, at its end, for none; and where each item starts among the tokens."""
    lengths = item_lengths(items, framing) if items else np.zeros(0, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    read = [s + source.kept.read.places(i, framing) for s, i, source in zip(starts, items, sources, strict=True)]
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *read])
    places = np.full(int(lengths.sum()) + 1, -1, dtype=np.int64)
    places[flat] = np.arange(len(flat))
    states = [source.kept.of(source.row, source.window) for source in sources]
    hidden = torch.cat([torch.zeros(0, size), *states])[None]
    return hidden, torch.from_numpy(places), starts
