"""Training rows that are read as they come, from data too large to keep: each by its place in an endless stream.

`datasets` reads the shards of a pass one after the other, in another order each pass. Every ``buffer_size`` rows read
become a block, which is mixed. So the row at a position is a function of the data and the seed, however often and
from wherever it is read, and inside one pass every row comes exactly once. Where a block begins is known by a cursor,
from which reading can go on: a run that is resumed does not read again what lies before.

Every process and every loader worker reads the whole stream (a step's rows belong together before they are dealt), and
tokenises the rows of its own steps.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from nlp_mtl.data.files import UNREADABLE, StreamSource, problem
from nlp_mtl.errors import DataError, listed

HEAD_ROWS = 100
"""So many rows are looked at before training, for the types of columns and the worst mistakes."""


class Cursor(NamedTuple):
    """Where a block begins: what a checkpoint keeps of a stream."""

    start: int
    """The position of its first row."""
    number: int
    """The pass over the data, from 0."""
    row: int
    """Rows of the pass that were read before."""
    state: dict[str, Any] | None
    """Where `datasets` stood; None: at the beginning of the pass."""
    digest: str
    """Of the block's rows, to see whether the data changed; empty: not known."""


class Stream:
    """The rows of one split, by position, from 0 on without end."""

    def __init__(
        self,
        opened: StreamSource,
        head: datasets.Dataset,
        dataset: str,
        source: str,
        column: str,
        *,
        num_rows: int | None,
        buffer_size: int,
        seed: int,
    ) -> None:
        """
        Args:
            opened: the split; it is not changed.
            head: its first rows, with the columns that are read.
            dataset: its name in the recipe.
            source: the name of the split in the source.
            column: that of texts or word lists.
            num_rows: rows in one pass; None: nobody knows.
            buffer_size: rows that are mixed together.
            seed: of all orders.
        """
        self.rows, self.files = opened.rows.with_format("arrow"), opened.files
        self.head = head
        self.dataset, self.source, self.column = dataset, source, column
        self.num_rows, self.buffer_size, self.seed = num_rows, buffer_size, seed
        self._cursors = {0: Cursor(0, 0, 0, None, "")}
        self._next = self._cursors[0]
        self._reading: tuple[datasets.IterableDataset, Iterator[pa.Table]] | None = None
        self._block: _Block | None = None

    @property
    def title(self) -> str:
        """Dataset and split, in words a user can follow."""
        return f"dataset `{self.dataset}`, split {self.source} (streamed)"

    @property
    def columns(self) -> list[str]:
        """What is read."""
        return self.head.column_names

    def batch(self, positions: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """The values of the rows at ascending positions.

        Raises:
            DataError: they cannot be read, or are not what they were when a cursor was made.
        """
        wanted = np.asarray(positions)
        values: dict[str, list[Any]] = {column: [] for column in self.columns}
        while len(wanted):
            block = self._block_with(int(wanted[0]))
            inside = wanted < block.stop
            found = block.table.take(pa.array(wanted[inside] - block.start))
            for column in self.columns:
                values[column] += found.column(column).to_pylist()
            wanted = wanted[~inside]
        return values

    def where(self, position: int) -> str:
        """A row's place, in words a user can follow. Files are not known, so it is told how the text begins."""
        block = self._block_with(position)
        place = position - block.start
        value = block.table.column(self.column)[place].as_py()
        text = " ".join(word or "" for word in value) if isinstance(value, list) else value or ""
        beginning = text if len(text) <= 60 else f"{text[:60]}..."
        return f"{self.title}, row {block.read_as(place)} of pass {block.number} (counted from 0): {beginning!r}"

    def cursor(self) -> Cursor:
        """Where the block begins of which rows were read last."""
        return self._cursors[self._block.start if self._block else 0]

    def remember(self, cursor: Cursor) -> None:
        """Learn where a block begins, so that what follows can be read without all that lies before."""
        self._cursors[cursor.start] = cursor

    def digest(self) -> str:
        """What tells this stream from another, as far as it is known before it is read."""
        identity = [self.num_rows, self.buffer_size, self.columns, self.head.to_list()]
        return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()

    def _block_with(self, position: int) -> "_Block":
        """The block in which a position lies."""
        if self._block is not None and self._block.start <= position < self._block.stop:
            return self._block
        nearest = max(start for start in self._cursors if start <= position)
        if position < self._next.start or nearest > self._next.start:
            self._reading, self._next = None, self._cursors[nearest]
        while True:
            self._block = self._read()
            if position < self._block.stop:
                return self._block

    def _read(self) -> "_Block":
        """The next block."""
        begin = self._next
        try:
            if self._reading is None:
                self._reading = self._opened(begin)
            rows, tables = self._reading
            table = next(tables, None)
            state = copy.deepcopy(rows.state_dict())
            if table is not None:
                table = self._checked(table)
                digest = _digest(table)
        except UNREADABLE as error:
            raise DataError(
                f"{self.title} cannot be read any further, {begin.row} or more rows into pass {begin.number}: "
                f"{problem(error, self.files)}"
            ) from error
        if table is None:
            if not begin.row:
                raise DataError(f"{self.title}: it is empty")
            self._reading, self._next = None, Cursor(begin.start, begin.number + 1, 0, None, "")
            return self._read()
        known = self._cursors.get(begin.start)
        if known is not None and known.digest not in ("", digest):
            raise DataError(
                f"{self.title}: the data has changed since the run read it, from row {begin.row} of pass "
                f"{begin.number} on: bring it back as it was, or start again, with --overwrite"
            )
        self._cursors[begin.start] = begin._replace(digest=digest)
        stop = begin.start + len(table)
        self._next = Cursor(stop, begin.number, begin.row + len(table), state, "")
        order = np.random.default_rng([self.seed, 3, begin.start]).permutation(len(table))
        return _Block(begin.start, stop, begin.number, begin.row, order, table.take(pa.array(order)))

    def _checked(self, table: pa.Table) -> pa.Table:
        """The columns that are read, in an order that does not depend on the file."""
        missing = [column for column in self.columns if column not in table.column_names]
        if missing:
            raise DataError(f"{self.title}: no column {listed(missing)} any more; found {listed(table.column_names)}")
        return table.select(self.columns)

    def _opened(self, cursor: Cursor) -> tuple[datasets.IterableDataset, Iterator[pa.Table]]:
        rows = copy.deepcopy(self.rows)  # `datasets` shares the number of the pass among forked processes
        # Shards are in another order for each number but 0.
        rows.set_epoch(1 + int(np.random.default_rng([self.seed, 4, cursor.number]).integers(2**31)))
        if cursor.state is not None:
            rows.load_state_dict(cursor.state)
        # Unlike iteration by rows, this does not deal the shards to loader workers.
        return rows, rows.iter(batch_size=self.buffer_size)


@dataclass(frozen=True)
class _Block:
    start: int
    stop: int
    number: int
    first_row: int
    order: np.ndarray
    table: pa.Table

    def read_as(self, place: int) -> int:
        """The number in its pass of the row at a place."""
        return self.first_row + int(self.order[place])


def _digest(table: pa.Table) -> str:
    return hashlib.sha256(json.dumps(table.to_pydict(), default=str).encode()).hexdigest()[:16]


def first_rows(opened: StreamSource, place: str, limit: int | None) -> datasets.Dataset:
    """The first rows of a split (None: all of them), held in memory.

    Raises:
        DataError: they cannot be read.
    """
    rows = opened.rows.with_format("arrow")
    try:
        tables = list(rows.iter(1000) if limit is None else islice(rows.iter(limit), 1))
        table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    except UNREADABLE as error:
        raise DataError(f"{place} cannot be read: {problem(error, opened.files)}") from error
    features = rows.features or datasets.Features.from_arrow_schema(table.schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table), datasets.DatasetInfo(features=features))


def known_size(rows: datasets.IterableDataset, source: str, limit: int | None) -> int | None:
    """Rows of a split as its metadata tell."""
    told: Mapping[str, Any] = rows.info.splits or {}
    size = told[source].num_examples if source in told else 0
    return (min(size, limit) if limit else size) or None
