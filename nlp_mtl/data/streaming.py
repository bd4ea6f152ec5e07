"""Training rows that are read as they come, from data too large to keep: each by its place in an endless stream.

A pass reads the files one after the other, in an order of its own. Every ``buffer_size`` rows read become a block,
which is mixed. So the row at a position is a function of the data and the seed, however often and from wherever it is
read, and inside one pass every row comes exactly once. Where a block begins is known by a cursor, from which reading
can go on.

Every process and every loader worker reads the whole stream (a step's rows belong together before they are dealt), and
tokenises the rows of its own steps.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np

from nlp_mtl.data.stream_sources import Chunk, Source
from nlp_mtl.errors import DataError

logger = logging.getLogger(__name__)

HEAD_ROWS = 100
"""So many rows are looked at before training, for the types of columns and the worst mistakes."""

_CURSORS = 256
"""So many are kept: who reads on needs the last ones, and who looks up a row of a late step."""


class Cursor(NamedTuple):
    """Where a block begins: what a checkpoint keeps of a stream."""

    start: int
    """The position of its first row."""
    number: int
    """The pass over the data, from 0."""
    row: int
    """Rows of the pass that were read before."""
    state: Any
    """Where the source stood; None: at the beginning of the pass."""
    digest: str
    """Of the block's rows, to see whether the data changed; empty: not known."""


class Stream:
    """The rows of one split, by position, from 0 on without end."""

    def __init__(
        self,
        source: Source,
        head: datasets.Dataset,
        dataset: str,
        split: str,
        column: str,
        *,
        buffer_size: int,
        seed: int,
    ) -> None:
        """
        Args:
            source: where rows come from, asked for the columns of ``head``.
            head: its first rows, with the columns that are read.
            dataset: its name in the recipe.
            split: the name of the split in the source.
            column: that of texts or word lists.
            buffer_size: rows that are mixed together.
            seed: of all orders.
        """
        self.source, self.head = source, head
        self.dataset, self.split, self.column = dataset, split, column
        self.buffer_size, self.seed = buffer_size, seed
        self._cursors = {0: Cursor(0, 0, 0, None, "")}
        self._next = self._cursors[0]
        self._chunks: Iterator[Chunk] | None = None
        self._block: _Block | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: what is being read stays here."""
        return {**self.__dict__, "_chunks": None, "_next": self._nearest(self._next.start)}

    @property
    def title(self) -> str:
        """Dataset and split, in words a user can follow."""
        return f"dataset `{self.dataset}`, split {self.split} (streamed)"

    @property
    def num_rows(self) -> int | None:
        """Rows in one pass; None: nobody knows."""
        return self.source.num_rows

    def batch(self, positions: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """The values of the rows at ascending positions.

        Raises:
            DataError: they cannot be read.
        """
        values: dict[str, list[Any]] = {column: [] for column in self.head.column_names}
        for position in map(int, positions):
            block = self._block_with(position)
            place = block.order[position - block.start]
            for column, found in values.items():
                found.append(block.rows[column][place])
        return values

    def where(self, position: int) -> str:
        """A row's place, in words a user can follow: its line, or where files are not known, how its text begins."""
        block = self._block_with(position)
        place = int(block.order[position - block.start])
        if block.places:
            return f"{self.title}, {block.places[place]}"
        value = block.rows[self.column][place]
        text = " ".join(word or "" for word in value) if isinstance(value, list) else value or ""
        beginning = text if len(text) <= 60 else f"{text[:60]}..."
        return f"{self.title}, row {block.first_row + place} of pass {block.number} (counted from 0): {beginning!r}"

    def cursor(self) -> Cursor:
        """Where the last block begins of which rows were read, here or by whom :meth:`remember` told of."""
        return self._cursors[self._block.start if self._block else max(self._cursors)]

    def remember(self, cursor: Cursor) -> None:
        """Learn where a block begins, so that what follows can be read without what lies before."""
        self._cursors[cursor.start] = cursor
        if len(self._cursors) > _CURSORS:
            del self._cursors[min(self._cursors.keys() - {0})]

    def digest(self) -> str:
        """What tells this stream from another, as far as it is known before it is read."""
        identity = [self.source.identity(), self.buffer_size, self.head.to_list()]
        return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()

    def _nearest(self, position: int) -> Cursor:
        return self._cursors[max(start for start in self._cursors if start <= position)]

    def _block_with(self, position: int) -> "_Block":
        """The block in which a position lies."""
        if self._block is not None and self._block.start <= position < self._block.stop:
            return self._block
        nearest = self._nearest(position)
        if position < self._next.start or nearest.start > self._next.start:
            self._chunks, self._next = None, nearest
        while True:
            self._block = self._read()
            if position < self._block.stop:
                return self._block

    def _read(self) -> "_Block":
        """The next block."""
        begin = self._next
        if self._chunks is None:
            order = np.random.default_rng([self.seed, 4, begin.number])
            self._chunks = self.source.chunks(order, begin.row, begin.state, self.buffer_size)
        chunk = next(self._chunks, None)
        if chunk is None:
            self._end_pass(begin)
            return self._read()
        digest = _digest(chunk.rows)
        known = self._cursors.get(begin.start)
        if known is not None and known.digest not in ("", digest):
            logger.warning(
                "%s: the data has changed since the run read it, from row %d of pass %d on; what is there now is used",
                self.title, begin.row, begin.number,
            )  # fmt: skip
        self.remember(begin._replace(digest=digest))
        count = len(chunk.rows[self.column])
        self._next = Cursor(begin.start + count, begin.number, begin.row + count, chunk.state, "")
        mixed = np.random.default_rng([self.seed, 3, begin.start]).permutation(count)
        return _Block(begin.start, begin.start + count, begin.number, begin.row, mixed, chunk.rows, chunk.places)

    def _end_pass(self, end: Cursor) -> None:
        if not end.row:
            raise DataError(f"{self.title}: it is empty")
        if not end.number and self.num_rows not in (None, end.row):
            logger.warning(
                "%s has %d rows, but its metadata tell of %d: epochs and shares by size are counted wrong",
                self.title, end.row, self.num_rows,
            )  # fmt: skip
        self._chunks, self._next = None, Cursor(end.start, end.number + 1, 0, None, "")


@dataclass(frozen=True)
class _Block:
    start: int
    stop: int
    number: int
    first_row: int
    order: np.ndarray
    """Which of its rows, as they were read, stands at each position."""
    rows: dict[str, list[Any]]
    places: list[str]


def _digest(rows: dict[str, list[Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:16]
