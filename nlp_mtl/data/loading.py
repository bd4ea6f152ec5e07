"""From a recipe's words about a dataset to its splits: files or Hub, columns, missing splits, caps."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from nlp_mtl.cleaning.cleaning import NOTHING, VERSION, Cleaning
from nlp_mtl.data.columns import check_columns, with_common_types
from nlp_mtl.data.files import FORMATS
from nlp_mtl.data.opening import open_splits
from nlp_mtl.data.row_filter import Row, RowFilter, remembered, rows_of
from nlp_mtl.data.stratification import codes_of, spread
from nlp_mtl.data.stream_sources import Source, columns_of
from nlp_mtl.data.streaming import HEAD_ROWS, Stream
from nlp_mtl.errors import DataError


@dataclass(frozen=True)
class LoadedSplit:
    """Rows of one split, and where they came from."""

    rows: datasets.Dataset
    dataset: str
    source: str
    """The split of the source that the rows were taken from: ``train`` for a carved validation split."""
    source_rows: np.ndarray
    """[rows] The row numbers there, from 0 and ascending; places in ``rows.data``, which stays whole."""
    files: tuple[str, ...] = ()
    """The files that were read, in order; empty for data from the Hub or a folder."""
    file_sizes: tuple[int, ...] = ()
    """Rows of each file."""
    held_out_as: str = ""
    """The split that the rows were held out for; empty where the source has the split itself."""

    def where(self, row: int) -> str:
        """A row's place, in words a user can follow."""
        number, file = int(self.source_rows[row]), ""
        if self.files:
            stops = np.cumsum(self.file_sizes)
            place = int(np.searchsorted(stops, number, side="right"))
            number -= int(stops[place]) - self.file_sizes[place]
            file = f" of {self.files[place]}"
        return f"{self.title}, row {number}{file} (counted from 0)"

    @property
    def title(self) -> str:
        """Dataset and split, in words a user can follow."""
        split = f"{self.held_out_as} (held out of {self.source})" if self.held_out_as else self.source
        return f"dataset `{self.dataset}`, split {split}"

    def values(self, column: str) -> Iterator[pa.Array]:
        """A column, a stretch of rows at a time. `datasets` would gather rows that were held out one by one."""
        start = 0
        for chunk in self.rows.data.column(column).chunks:
            first, last = np.searchsorted(self.source_rows, [start, start + len(chunk)])
            if first < last:
                yield chunk.take(pa.array(self.source_rows[first:last] - start))
            start += len(chunk)

    def take(self, places: np.ndarray) -> "LoadedSplit":
        """The rows at ``places``. They are not copied: the numbers are all that is held of them."""
        chosen = self.source_rows[places]
        return replace(self, rows=rows_at(self.rows, chosen), source_rows=chosen)


def rows_at(rows: datasets.Dataset, places: np.ndarray) -> datasets.Dataset:
    """The rows at ``places`` of the table behind ``rows``: as ``select``, without a Python object for each row."""
    numbers = places.astype(f"u{places.itemsize}", copy=False)
    indices = datasets.table.InMemoryTable(pa.table({"indices": numbers}))
    digest = hashlib.sha256(rows._fingerprint.encode())
    digest.update(numbers.data)
    return datasets.Dataset(rows.data, rows.info, rows.split, indices, digest.hexdigest()[:32])


@dataclass(frozen=True)
class LoadedDataset:
    """The splits of one dataset."""

    name: str
    column: str
    """The column of texts or of word lists."""
    is_words: bool
    splits: dict[str, LoadedSplit]
    notes: list[str] = field(default_factory=list)
    """What the user is told: splits that were carved or capped."""
    stream: Stream | None = None
    """The training rows, where they are streamed; there is no split ``train`` then."""
    stratified_by: str | None = None
    """The column whose values splits that were held out keep in proportion."""
    pair_column: str | None = None
    """That of second texts, where rows hold pairs."""
    cleaning: Cleaning = NOTHING
    """What is done to its texts, or to its words."""

    @property
    def text_columns(self) -> list[str]:
        """One, or two of pairs."""
        return [self.column] if self.pair_column is None else [self.column, self.pair_column]

    @property
    def features(self) -> datasets.Features:
        """The types of the columns, the same in all splits."""
        rows = self.stream.head if self.stream else next(iter(self.splits.values())).rows
        return rows.features


def load_splits(
    dataset: str,
    *,
    path: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    data_dir: str = ".",
    text: str | None = None,
    text_pair: str | None = None,
    tokens: str | None = None,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    splits: Mapping[str, str | None] | None = None,
    validation_fraction: float,
    test_fraction: float,
    max_rows: Mapping[str, int] | None = None,
    streaming: bool = False,
    buffer_size: int = 1,
    label_columns: Sequence[str] = (),
    number_columns: Sequence[str] = (),
    stratify: str | None = None,
    default_stratify: str | None = None,
    seed: int = 0,
    split_seed: int | None = None,
    cleaning: Cleaning = NOTHING,
    row_filter: RowFilter | None = None,
    word_splitter: str = "unicode",
) -> LoadedDataset:
    """Load one dataset. The arguments are the recipe's keys; see :class:`nlp_mtl.recipe.DatasetSpec`.

    Args:
        dataset: its name in the recipe, for messages.
        label_columns: columns that tasks will read; they must exist.
        number_columns: those among them that hold numbers and no classes: the first rows of a stream of CSV do not
            tell, as they may all be whole.
        stratify: the column whose values a carved split keeps in proportion, as the recipe says it; it must be of use.
        default_stratify: the same where ``stratify`` is None; a label column.
        seed: of the order of a stream.
        split_seed: of the rows that are held out, and those that are kept of more; None: ``seed``.
        cleaning: what is done to its texts, for ``row_filter`` and whoever encodes them.
        row_filter: which training rows are left out, before any are held out.
        word_splitter: how texts become words, whose number ``row_filter`` looks at.

    Raises:
        DataError: it cannot be read, is empty, lacks a column, or ``stratify`` names one that is of no use.
    """
    column = text if text is not None else tokens
    assert column is not None, "text or tokens"
    if path in FORMATS and data_files is None:
        raise DataError(f"dataset `{dataset}`: `path: {path}` is a format; say which `data_files` to read")
    opened = open_splits(
        dataset, path=path, name=name, revision=revision, data_files=data_files, data_dir=data_dir,
        columns=columns, delimiter=delimiter, splits=splits or {}, streaming=streaming,
    )  # fmt: skip
    own_names, limits = opened.own_names, dict(max_rows or {})
    split_seed = seed if split_seed is None else split_seed
    label_columns = list(dict.fromkeys([*label_columns, *([] if stratify is None else [stratify])]))
    texts = [column] if text_pair is None else [column, text_pair]
    wanted = list(dict.fromkeys([*texts, *label_columns]))
    for split, own in own_names.items():
        if own in opened.streams:
            decimals = {*number_columns}.difference(texts)
            source = columns_of(opened.streams[own], wanted, texts, tokens is not None, limits.get(split), decimals)
            opened.streams[own], opened.parts[own] = source, {"": source.head(HEAD_ROWS if split == "train" else None)}
    parts = {own: opened.parts[own] for own in own_names.values()}
    check_columns(dataset, parts, texts, tokens is not None, label_columns)
    read = _join(dataset, with_common_types(dataset, parts, wanted))
    splits_read = {split: read[own] for split, own in own_names.items()}
    cleaning = cleaning.of_words() if tokens is not None else cleaning
    result = LoadedDataset(dataset, column, tokens is not None, splits_read, pair_column=text_pair, cleaning=cleaning)
    if row_filter and "train" in splits_read and not streaming:
        result.splits["train"] = _filtered(result, row_filter, word_splitter, label_columns)
    fractions = {"validation": validation_fraction, "test": test_fraction}
    missing = {
        split: fraction
        for split, fraction in fractions.items()
        if split not in own_names and fraction > 0 and (splits or {}).get(split, "") is not None
    }
    if streaming:
        result = _streamed(result, opened.streams, missing, limits, buffer_size, seed)
    elif missing and "train" in result.splits:
        if stratify is not None and not _is_plain(result.features[stratify]):
            raise DataError(
                f"dataset `{dataset}`: `stratify: {stratify}` is a column of lists; name one of single values"
            )
        if default_stratify is not None and not _is_plain(result.features[default_stratify]):
            default_stratify = None  # no labels; whoever reads them tells what is wrong
        result = replace(result, stratified_by=stratify or default_stratify)
        _carve(result.splits, missing, result.stratified_by, split_seed, result.notes)
    if stratify is not None and not any(split.held_out_as for split in result.splits.values()):
        raise DataError(
            f"dataset `{dataset}`: `stratify` is for splits that are held out of train; none is: leave it out"
        )
    for split, limit in limits.items():
        if own_names.get(split) in opened.streams:
            continue  # its first rows were taken
        if split not in result.splits:
            raise DataError(f"dataset `{dataset}`: max_rows limits {split}, but there is no such split")
        count = len(result.splits[split].rows)
        if count > limit:
            chosen = np.random.default_rng([split_seed, limit]).permutation(count)[:limit]
            result.notes.append(f"{dataset}: {limit} of {count} {split} rows (max_rows)")
            result.splits[split] = result.splits[split].take(np.sort(chosen))
    return result


def _filtered(
    loaded: LoadedDataset, row_filter: RowFilter, word_splitter: str, label_columns: Sequence[str]
) -> LoadedSplit:
    """The training rows that a filter keeps."""
    train = loaded.splits["train"]
    evaluated = [split for name, split in loaded.splits.items() if name != "train"]
    found = remembered(
        Path(train.rows.cache_files[0]["filename"]).parent if train.rows.cache_files else None,
        [
            *(split.rows._fingerprint for split in (train, *evaluated)),
            loaded.text_columns, word_splitter, row_filter.to_dict(), VERSION, loaded.cleaning.to_dict(),
        ],
        lambda: row_filter.left_out(
            compared_rows(loaded, [train], word_splitter), compared_rows(loaded, evaluated, word_splitter)
        ),
    )  # fmt: skip
    kept = np.flatnonzero(found.why == 0)
    count = len(found.why)
    if len(kept) == count:
        return train
    labels = train.rows.select_columns(list(label_columns))
    told = row_filter.told(found, lambda rows: list(zip(*labels[rows].values(), strict=True)))
    told = f"{count - len(kept):,} of {count:,} train rows are left out (cleaning): {told}"
    if not len(kept):
        raise DataError(f"dataset `{loaded.name}`: {told}, which leaves none")
    loaded.notes.append(f"{loaded.name}: {told}")
    return train.take(kept)


def compared_rows(loaded: LoadedDataset, splits: Iterable[LoadedSplit], word_splitter: str) -> Iterator[Row]:
    """What tells rows of some splits from each other: their cleaned words."""

    def words_of(value: Any) -> list[str]:
        if loaded.is_words:
            return [loaded.cleaning.text(word) for word in value or () if word is not None]
        return loaded.cleaning.words(value or "", word_splitter)[0]

    for split in splits:
        columns = (_plain(split.values(column)) for column in loaded.text_columns)
        yield from rows_of(zip(*columns, strict=True), words_of)


def _plain(chunks: Iterable[pa.Array]) -> Iterator[Any]:
    for chunk in chunks:
        yield from chunk.to_pylist()


def _streamed(
    loaded: LoadedDataset,
    sources: Mapping[str, Source],
    missing: Iterable[str],
    limits: Mapping[str, int],
    buffer_size: int,
    seed: int,
) -> LoadedDataset:
    """A dataset of which train is a stream, and only its first rows were read."""
    head = loaded.splits.pop("train", None)
    if head is None:
        return loaded
    source = sources[head.source].reading(head.rows.features)
    stream = Stream(source, head.rows, loaded.name, head.source, loaded.column, buffer_size=buffer_size, seed=seed)
    told = "nobody knows how many rows" if source.num_rows is None else f"{source.num_rows:,} rows"
    first = f", the first {limits['train']:,} at most (max_rows)" if "train" in limits else ""
    loaded.notes.append(f"{loaded.name}: train is streamed ({told}{first}), so only its first rows are checked now")
    loaded.notes.extend(f"{loaded.name}: no {split} split; none is held out of a stream" for split in missing)
    return replace(loaded, stream=stream)


def _join(dataset: str, source: Mapping[str, Mapping[str, datasets.Dataset]]) -> dict[str, LoadedSplit]:
    """The files of each split as one."""
    joined = {}
    for split, parts in source.items():
        rows = datasets.concatenate_datasets(list(parts.values())) if len(parts) > 1 else next(iter(parts.values()))
        files = tuple(file for file in parts if file)
        sizes = tuple(len(part) for file, part in parts.items() if file)
        numbers = np.arange(len(rows), dtype=np.uint32 if len(rows) < 2**32 else np.uint64)
        joined[split] = LoadedSplit(rows, dataset, split, numbers, files, sizes)
    return joined


def _is_plain(feature: Any) -> bool:
    """Whether a column holds single strings, numbers or classes."""
    return isinstance(feature, datasets.Value | datasets.ClassLabel)


def _carve(
    loaded: dict[str, LoadedSplit],
    missing: Mapping[str, float],
    stratify: str | None,
    seed: int,
    notes: list[str],
) -> None:
    """Hold rows of train out for the missing splits, keeping the proportions of ``stratify``."""
    train = loaded["train"]
    count = len(train.rows)
    order = np.random.default_rng([seed, count]).permutation(count)
    if stratify is not None:
        order = spread(order, codes_of(train.values(stratify)))
    start = 0
    rest = np.ones(count, dtype=bool)
    for split, fraction in missing.items():
        size = round(count * fraction)
        if not 0 < size < count - start:
            notes.append(f"{train.dataset}: no {split} split, and train is too small to carve one")
            continue
        chosen = np.sort(order[start : start + size])
        start += size
        rest[chosen] = False
        loaded[split] = replace(train.take(chosen), held_out_as=split)
        how = f", stratified by {stratify}" if stratify else ""
        notes.append(f"{train.dataset}: no {split} split; {size} of {count} train rows held out (seed {seed}{how})")
    if not rest.all():
        loaded["train"] = train.take(np.flatnonzero(rest))
