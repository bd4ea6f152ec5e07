"""What a stream is read from: files of text, or what `datasets` streams (the Hub, Parquet). Both give chunks."""

import copy
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from huggingface_hub.errors import HfHubHTTPError

from nlp_mtl.data.text_files import Row, read_rows
from nlp_mtl.errors import DataError, did_you_mean, listed

_NUMBER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_ROWS_WITHOUT = 1000
"""So many rows of a JSON Lines file may leave out a column."""


class Chunk(NamedTuple):
    """Rows that were read one after the other."""

    rows: dict[str, list[Any]]
    """``{column: values}``"""
    places: list[str]
    """Where each row stands; empty: nobody knows."""
    state: Any
    """What :meth:`chunks` goes on from behind it: plain values."""


@dataclass(frozen=True)
class TextSource:
    """Files of one text format."""

    place: str
    """Dataset and split, for messages."""
    files: tuple[str, ...]
    form: str
    given_columns: tuple[str, ...] = ()
    delimiter: str | None = None
    limit: int | None = None
    """Rows of a pass, the first ones; None: all."""
    columns: tuple[str, ...] = ()
    """Those that are asked for."""
    text_columns: tuple[str, ...] = ()
    """One, or two of pairs."""
    is_words: bool = False
    """Whether they hold lists of words."""
    numbers: frozenset[str] = frozenset()
    """Columns of class numbers, in a format that writes all as text."""
    decimals: frozenset[str] = frozenset()
    """Columns of numbers that are no classes, in such a format: whole or not, whatever the first ones are."""
    num_rows: int | None = None

    def head(self, count: int | None) -> datasets.Dataset:
        """The first rows (None: all of them), with all columns that can be held.

        Raises:
            DataError: they cannot be read.
        """
        count = self.limit if count is None else min(count, self.limit or count)
        rows = list(islice((row for file in self.files for _, row in self._rows(file)), count))
        found: dict[str, pa.Array] = {}
        for column in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(column) for row in rows]
            given = [value for value in values if value is not None]
            if column in self.decimals:
                values = [self._decimal(one, column, partial(self.where_in_head, n)) for n, one in enumerate(values)]
            elif self.form in ("csv", "tsv") and given and all(map(_NUMBER.fullmatch, given)):
                values = [None if value is None else int(value) for value in values]
            try:
                found[column] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                if column in self.columns:
                    kinds = [type(value) for value in values]
                    odd = next(
                        n for n, kind in enumerate(kinds) if kind not in (kinds[values.index(given[0])], type(None))
                    )
                    raise DataError(
                        f"{self.place}, {self.where_in_head(odd)}: the column `{column}` holds {values[odd]!r:.60}, "
                        f"and {given[0]!r:.60} before: values of different types"
                    ) from error
        table = datasets.table.InMemoryTable(pa.table(found))
        return datasets.Dataset(table, datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(table.schema)))

    def reading(self, features: datasets.Features) -> "TextSource":
        """The same, told what types its columns have."""
        numbers = {name for name, kind in features.items() if self.form in ("csv", "tsv") and "int" in str(kind)}
        return replace(self, numbers=frozenset(numbers.difference(self.text_columns, self.decimals)))

    def identity(self) -> list[Any]:
        """What tells the data from another: where a row stands depends on it. What is in the files may be mended."""
        return [Path(file).name for file in self.files]

    def where_in_head(self, row: int) -> str:
        """Where one of the first rows stands."""
        rows = (f"line {line} of {file}" for file in self.files for line, _ in self._rows(file))
        return next(islice(rows, row, None))

    def chunks(self, order: np.random.Generator, done: int, state: Any, size: int) -> Iterator[Chunk]:
        """A pass, ``size`` rows at a time, from a state on (None: the beginning). Files are in a mixed ``order``.

        Args:
            done: rows of the pass before.
        """
        files = self.files if self.limit else [self.files[place] for place in order.permutation(len(self.files))]
        first, skipped = state or (0, 0)
        left = float("inf") if self.limit is None else self.limit - done
        rows: list[Row] = []
        places: list[str] = []
        for number, file in enumerate(files[first:], start=first):
            begin = skipped if number == first else 0
            for place, (line, row) in enumerate(islice(self._rows(file), begin, None), start=begin):
                if len(rows) >= left:
                    break
                rows.append(self._read(row, file, line))
                places.append(f"line {line} of {file}")
                if len(rows) == size:
                    yield Chunk(self._columns_of(rows), places, [number, place + 1])
                    left -= size
                    rows, places = [], []
        if rows:
            yield Chunk(self._columns_of(rows), places, [len(files), 0])

    def _columns_of(self, rows: list[Row]) -> dict[str, list[Any]]:
        return {column: [row[column] for row in rows] for column in self.columns}

    def _rows(self, file: str) -> Iterator[tuple[int, Row]]:
        """All rows of a file, which has to have the columns: a row of JSON may leave out those that are null."""
        missing = set(self.columns)
        known: dict[str, None] = {}
        for count, (line, row) in enumerate(
            read_rows(self.place, file, self.form, self.given_columns, self.delimiter), start=1
        ):
            if missing:
                missing -= row.keys()
                known |= dict.fromkeys(row)
                if missing and (count == _ROWS_WITHOUT or self.form != "json"):
                    raise self._lacks(file, missing, known)
            yield line, row
        if missing and known:
            raise self._lacks(file, missing, known)

    def _lacks(self, file: str, missing: set[str], known: dict[str, None]) -> DataError:
        name = min(missing)
        return DataError(
            f"{self.place}: {file} has no column `{name}`; it has {listed(known)}.{did_you_mean(name, known)}"
        )

    def _decimal(self, value: str | None, column: str, where: Callable[[], str]) -> float | None:
        if value is not None and not _DECIMAL.fullmatch(value):
            raise DataError(f"{self.place}, {where()}: the column `{column}` holds {value!r:.60}; expected a number")
        return None if value is None else float(value)

    def _read(self, row: Row, file: str, line: int) -> Row:
        values = {column: row.get(column) for column in self.columns}
        for column in self.decimals:
            values[column] = self._decimal(values[column], column, lambda: f"line {line} of {file}")
        for column in self.numbers:
            value = values.get(column)
            if value is not None:
                if not _NUMBER.fullmatch(value):
                    raise DataError(
                        f"{self.place}, line {line} of {file}: the column `{column}` held numbers, and now {value!r}"
                    )
                values[column] = int(value)
        for column in self.text_columns:
            if not (_are_words if self.is_words else _is_text)(values[column]):
                what = "list of words" if self.is_words else "text"
                raise DataError(
                    f"{self.place}, line {line} of {file}: `{column}` holds {values[column]!r:.60}, no {what}"
                )
        return values


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_words(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_text, value)))


_UNREADABLE = (
    DatasetGenerationError, HfHubHTTPError, ValueError, TypeError, NotImplementedError, OSError, EOFError, ImportError,
    SystemError,
)  # fmt: skip
"""What `datasets` raises while it reads a stream."""


@dataclass(frozen=True)
class LibrarySource:
    """What `datasets` streams: a split on the Hub, in a folder, or of Parquet files."""

    place: str
    rows: datasets.IterableDataset
    files: tuple[str, ...] = ()
    limit: int | None = None
    columns: tuple[str, ...] = ()
    num_rows: int | None = None

    def head(self, count: int | None) -> datasets.Dataset:
        """The first rows (None: all of them).

        Raises:
            DataError: they cannot be read.
        """
        rows = self.rows.with_format("arrow")
        count = self.limit if count is None else min(count, self.limit or count)
        try:
            tables = list(rows.iter(1000) if count is None else islice(rows.iter(count), 1))
            table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
        except _UNREADABLE as error:
            raise DataError(f"{self.place} cannot be read: {_problem(error)}") from error
        features = rows.features or datasets.Features.from_arrow_schema(table.schema)
        return datasets.Dataset(datasets.table.InMemoryTable(table), datasets.DatasetInfo(features=features))

    def reading(self, _: datasets.Features) -> "LibrarySource":
        """The same: the types are known."""
        return self

    def identity(self) -> list[Any]:
        """As :meth:`TextSource.identity`."""
        return [self.rows.num_shards, [Path(file).name for file in self.files]]

    def where_in_head(self, row: int) -> str:
        """As :meth:`TextSource.where_in_head`."""
        return f"row {row} (counted from 0)"

    def chunks(self, order: np.random.Generator, done: int, state: Any, size: int) -> Iterator[Chunk]:
        """As :meth:`TextSource.chunks`."""
        # `datasets` shares the number of the pass among forked processes: each has its own.
        rows = copy.deepcopy(self.rows if self.limit is None else self.rows.take(self.limit)).with_format("arrow")
        # Shards are in another order for each number but 0.
        rows.set_epoch(1 + int(order.integers(2**31)))
        if state is not None:
            rows.load_state_dict(state)
        try:
            # Unlike iteration by rows, this does not deal the shards to loader workers.
            for table in rows.iter(batch_size=size):
                missing = [column for column in self.columns if column not in table.column_names]
                if missing:
                    found = listed(table.column_names)
                    raise DataError(f"{self.place}: no column {listed(missing)} any more; found {found}")
                columns = table.select(self.columns).to_pydict()
                done += len(table)
                yield Chunk(columns, [], copy.deepcopy(rows.state_dict()))
        except _UNREADABLE as error:
            raise DataError(
                f"{self.place} cannot be read any further, {done} or more rows into a pass: {_problem(error)}"
            ) from error


def _problem(error: Exception) -> str:
    cause = (error.__cause__ or error) if isinstance(error, DatasetGenerationError) else error
    if isinstance(cause, CastError):
        found, expected = listed(cause.table_column_names), listed(cause.requested_column_names)
        return f"a file has the columns {found}, but those before it {expected}, or values of another type"
    return " ".join(str(cause).split())[:300] or type(cause).__name__


Source = TextSource | LibrarySource


def known_size(rows: datasets.IterableDataset, split: str) -> int | None:
    """Rows of a split as its metadata tell; None: they do not."""
    told: Any = rows.info.splits or {}
    return (told[split].num_examples if split in told else 0) or None


def columns_of(
    source: Source,
    columns: Sequence[str],
    text_columns: Sequence[str],
    is_words: bool,
    limit: int | None,
    decimals: Collection[str] = (),
) -> Source:
    """A source that is asked for some columns, and of which a pass has so many rows at most."""
    asked: dict[str, Any] = {"columns": tuple(columns), "limit": limit}
    if source.num_rows is not None and limit is not None:
        asked["num_rows"] = min(source.num_rows, limit)
    if isinstance(source, TextSource):
        asked["decimals"] = frozenset(decimals if source.form in ("csv", "tsv") else ())
        return replace(source, **asked, text_columns=tuple(text_columns), is_words=is_words)
    return replace(source, **asked)
