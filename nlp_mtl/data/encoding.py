"""Loaded splits to encoded ones: sub-words and label ids of every row, memory-mapped, for any later layout."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from nlp_mtl.cleaning import cleaning
from nlp_mtl.data.encoded_splits import EncodedSplit, StreamedSplit, label_column
from nlp_mtl.data.labels import LabelReader
from nlp_mtl.data.loading import LoadedDataset
from nlp_mtl.data.row_words import words_in
from nlp_mtl.data.tokenization import encode_pairs, encode_words, unknown_id
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of the cache key; raised when what is encoded changes."""

FEW_ROWS = 4000
"""So many rows are tokenised sooner than other processes are started."""


def encode_split(
    loaded: LoadedDataset,
    split: str,
    tasks: Sequence[tuple[Task, str, LabelReader]],
    tokenizer: PreTrainedTokenizerBase,
    word_splitter: str,
    num_proc: int = 1,
) -> EncodedSplit:
    """Encode one split, or read it from the cache.

    Args:
        tasks: those that read labels here, each with its column and the reader of its values.
        word_splitter: how texts become words; word lists stay as they are.
        num_proc: processes that tokenise; what comes out, and the cache, are the same.

    Raises:
        DataError: labels do not fit words, or are unknown; the message names the row.
    """
    source = loaded.splits[split]
    columns = list(dict.fromkeys([*loaded.text_columns, *(column for _, column, _ in tasks)]))
    rows = source.rows.select_columns(columns)
    encode = _Encoder(replace(loaded, splits={}, stream=None), tuple(tasks), tokenizer, word_splitter)
    where = replace(source, rows=rows.select(range(0))).where  # other processes get it with each job
    types = {"pieces": "int32", "starts": "int32", **({"second": "int32"} if loaded.pair_column else {})}
    types |= {label_column(task.name): kind_of(task).dtype for task, _, _ in tasks}
    features = datasets.Features({name: datasets.List(datasets.Value(one)) for name, one in types.items()})  # type: ignore[arg-type]
    fingerprint = _fingerprint(rows, loaded, tasks, tokenizer, word_splitter)
    with (
        by_one_at_a_time(rows, fingerprint, f"{source.title}: waiting for another process, which tokenizes it"),
        warnings.catch_warnings(),
    ):
        # The other processes use neither torch nor the tokenizer's threads, so they do not miss any.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        encoded = rows.map(
            lambda batch, places: encode(batch, places, where),
            with_indices=True,
            batched=True,
            remove_columns=columns,
            features=features,
            num_proc=num_proc if num_proc > 1 and len(rows) > FEW_ROWS else None,
            new_fingerprint=fingerprint,
            desc=f"Tokenizing {loaded.name} {split}",
        )
    return EncodedSplit(source, encoded, {task.name: task.type for task, _, _ in tasks})


def stream_split(
    loaded: LoadedDataset,
    tasks: Sequence[tuple[Task, str, LabelReader]],
    tokenizer: PreTrainedTokenizerBase,
    word_splitter: str,
) -> StreamedSplit:
    """The stream of a dataset; arguments as in :func:`encode_split`.

    Raises:
        DataError: its first rows are not what tasks need; the same as while it is read.
    """
    stream = loaded.stream
    assert stream is not None, "a streamed dataset"
    encode = _Encoder(replace(loaded, splits={}, stream=None), tuple(tasks), tokenizer, word_splitter)
    first = encode(
        stream.head[:], range(len(stream.head)), lambda row: f"{stream.title}, {stream.source.where_in_head(row)}"
    )
    for task, column, _ in tasks:
        if not any(map(kind_of(task).num_items, first[label_column(task.name)])):
            logger.warning(
                "%s: none of the first %d rows has a label of the task `%s` (column `%s`)",
                stream.title, len(stream.head), task.name, column,
            )  # fmt: skip
    return StreamedSplit(stream, encode, {task.name: task.type for task, _, _ in tasks})


@dataclass(frozen=True)
class _Encoder:
    """:data:`Encode`; a class, so that it can go to other processes."""

    of: LoadedDataset
    """How its rows are read; it holds none of them."""
    tasks: tuple[tuple[Task, str, LabelReader], ...]
    tokenizer: PreTrainedTokenizerBase
    word_splitter: str

    def __call__(
        self, batch: Mapping[str, list[Any]], places: Sequence[int], where: Callable[[int], str]
    ) -> dict[str, list[Any]]:
        words, seconds = words_in(self.of, batch, self.word_splitter, lambda place: where(places[place]))
        if seconds is None:
            pieces, starts = encode_words(self.tokenizer, words)
            encoded: dict[str, list[Any]] = {"pieces": pieces, "starts": starts}
        else:
            pieces, starts, second = encode_pairs(self.tokenizer, words, seconds)
            encoded = {"pieces": pieces, "starts": starts, "second": second}
        for task, column, reader in self.tasks:
            target = kind_of(task).target
            encoded[label_column(task.name)] = [
                target(reader, value, len(row), partial(where, place))
                for value, row, place in zip(batch[column], words, places, strict=True)
            ]
        return encoded


@contextmanager
def by_one_at_a_time(rows: datasets.Dataset, fingerprint: str, waiting: str) -> Iterator[None]:
    """Runs that start together: one fills the cache, the others wait for it. A killed one leaves no lock behind."""
    if not rows.cache_files:  # rows that are held in memory have no cache
        yield
        return
    lock = FileLock(Path(rows.cache_files[0]["filename"]).with_name(f"cache-{fingerprint}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("%s", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fingerprint(
    rows: datasets.Dataset,
    loaded: LoadedDataset,
    tasks: Sequence[tuple[Task, str, LabelReader]],
    tokenizer: PreTrainedTokenizerBase,
    word_splitter: str,
) -> str:
    """The cache key: everything that the encoded rows depend on."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = [
        VERSION,
        rows._fingerprint,
        {**backend, "truncation": None, "padding": None},  # left behind by the tokenizer's last call
        unknown_id(tokenizer),
        *loaded.text_columns,
        "words" if loaded.is_words else word_splitter,
        *([cleaning.VERSION, loaded.cleaning.to_dict()] if loaded.cleaning != cleaning.NOTHING else []),
        *((task.name, task.type, column, reader.key()) for task, column, reader in tasks),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
