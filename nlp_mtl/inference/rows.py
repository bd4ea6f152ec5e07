"""The rows of a file, a folder or a dataset on the Hub, which are to be answered."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from nlp_mtl.data.columns import check_columns, items_of
from nlp_mtl.data.files import ENDINGS, ending_of, load_local, no_such_file, read_files
from nlp_mtl.data.opening import load_source
from nlp_mtl.data.text_files import not_text
from nlp_mtl.errors import DataError, did_you_mean, first_line, listed

ROWS_READ = 64
"""At a time, of a table."""

_TEXT_ENDINGS = ("txt", "text")

_PLAIN = (
    datasets.Value, datasets.ClassLabel, datasets.Json, datasets.Translation, datasets.TranslationVariableLanguages,
    datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D,
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Texts or pairs of them, or lists of words, with what is kept beside them."""

    table: datasets.Dataset
    text: str
    """The column of texts or of word lists."""
    text_pair: str | None
    keep: tuple[str, ...]
    """Columns that answers are given with."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def is_words(self) -> bool:
        """Whether texts come as lists of words."""
        return items_of(self.table.features[self.text]) is not None

    def texts(self, where: range) -> Iterator[tuple[Any, Any]]:
        """Texts with their second ones (or None) of rows that follow each other. A null is an empty text."""
        empty: Any = [] if self.is_words else ""
        names = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        for columns in self._read(names, where):
            firsts = [empty if value is None else value for value in columns[self.text]]
            if self.is_words:
                firsts = [["" if word is None else word for word in words] for words in firsts]
            if self.text_pair is None:
                yield from ((first, None) for first in firsts)
            else:
                seconds = ["" if value is None else value for value in columns[self.text_pair]]
                yield from zip(firsts, seconds, strict=True)

    def kept(self, where: range) -> Iterator[dict[str, Any]]:
        """What is kept of each of these rows, as plain values."""
        if not self.keep:
            yield from ({} for _ in where)
            return
        for columns in self._read(self.keep, where):
            yield from (dict(zip(self.keep, row, strict=True)) for row in zip(*columns.values(), strict=True))

    def column(self, name: str, where: range) -> pa.ChunkedArray:
        """A column of these rows, as it is stored."""
        return self._columns([name]).with_format("arrow")[where.start : where.stop].column(name)

    def _read(self, names: Sequence[str], where: range) -> Iterator[dict[str, list[Any]]]:
        """Columns of these rows, a few rows at a time: texts may be long."""
        table = self._columns(names)
        for start in range(where.start, where.stop, ROWS_READ):
            found = table[start : min(start + ROWS_READ, where.stop)]
            yield {name: found[name] for name in names}

    def _columns(self, names: Sequence[str]) -> datasets.Dataset:
        chosen: datasets.Dataset = self.table.select_columns(list(dict.fromkeys(names)))
        return chosen

    def digest(self) -> str:
        """A checksum of what is read and kept."""
        digest = hashlib.sha256()
        for batch in self.table.with_format("arrow").iter(4 * ROWS_READ):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_table(batch.combine_chunks())
            digest.update(sink.getvalue())
        return digest.hexdigest()


def open_rows(
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    text: str | None = None,
    tokens: str | None = None,
    text_pair: str | None = None,
    keep: Sequence[str] = (),
) -> Rows:
    """Find the rows that are to be answered.

    Args:
        source: a file (text: a line is a text; JSON Lines, CSV, TSV, Parquet, CoNLL-U; also compressed), a folder of a
            dataset, or the id of one on the Hub.
        name, revision: of a dataset on the Hub.
        split: by the dataset's own name; not needed where there is one alone.
        text: the column of texts; default: ``text``, or the only column that holds texts.
        tokens: the column of word lists, instead of texts.
        text_pair: the column of second texts.
        keep: columns that answers are given with.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    path = Path(source).expanduser()
    if path.is_file():
        for option, value in (("name", name), ("revision", revision), ("split", split)):
            if value is not None:
                raise DataError(f"{source} is a file, which has no {option}: leave it out")
        table = _read_file(source, path)
    elif not path.is_dir() and ending_of(path) in (*_TEXT_ENDINGS, *ENDINGS):
        raise DataError(f"{source}: {no_such_file(path)}")
    else:
        table = _choose_split(source, load_source(source, source, name, revision, None, ".", False), split)
    if tokens is not None and (text is not None or text_pair is not None):
        raise DataError("lists of words are single texts: give either columns of texts, or one of lists of words")
    column = tokens or text or _text_column(source, table)
    texts = [column] if text_pair is None else [column, text_pair]
    check_columns(source, {split or "rows": {"": table}}, texts, tokens is not None, keep)
    if files := [name for name in keep if not _is_plain(table.features[name])]:
        raise DataError(f"{source}: {listed(files)} holds files (images, sound), which cannot be kept: leave it out")
    chosen = list(dict.fromkeys([*texts, *keep]))
    return Rows(table.select_columns(chosen), column, text_pair, tuple(dict.fromkeys(keep)))


def _read_file(source: str, path: Path) -> datasets.Dataset:
    if ending_of(path) not in _TEXT_ENDINGS:
        (table,) = read_files(source, None, {"rows": str(path.absolute())}, "/", None, None)["rows"].values()
        return table
    try:
        files = {"data_files": {"rows": [str(path.absolute())]}}
        options = {**files, "encoding": "utf-8-sig", "encoding_errors": "replace"}  # also with a byte-order mark
        table = load_local("text", [path], **options)["rows"]
    except (OSError, EOFError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        problem = first_line(error.__cause__ or error)
        problem = "it is empty" if "at least one example" in problem else problem
        raise DataError(f"{source} cannot be read: {problem}") from error
    if len(table) and table[0]["text"].startswith("\ufeff"):  # of compressed files, the reader leaves it
        first = datasets.Dataset.from_dict({"text": [table[0]["text"][1:]]}, features=table.features)
        table = datasets.concatenate_datasets([first, table.select(range(1, len(table)))])
    replaced = pc.match_substring(table.data.column("text"), "\ufffd")
    if pc.any(replaced).as_py() and (problem := not_text(str(path))):  # a bad text does not stop the others
        logger.warning("%s: %s; what cannot be read becomes \ufffd", source, problem)
    return table


def _choose_split(source: str, found: dict[str, dict[str, datasets.Dataset]], split: str | None) -> datasets.Dataset:
    if split is None and len(found) > 1:
        raise DataError(f"{source} has the splits {listed(found)}: say which, `--split {next(iter(found))}`")
    chosen = next(iter(found)) if split is None else split
    if chosen not in found:
        raise DataError(f"{source} has no split `{chosen}`; it has {listed(found)}.{did_you_mean(chosen, found)}")
    return next(iter(found[chosen].values()))  # one part: datasets on the Hub and folders are whole


def _is_plain(feature: Any) -> bool:
    """Whether a column holds values, not files."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _is_plain(feature.feature)
    if isinstance(feature, dict | list):
        return all(map(_is_plain, feature.values() if isinstance(feature, dict) else feature))
    return isinstance(feature, _PLAIN)


def _text_column(source: str, table: datasets.Dataset) -> str:
    if "text" in table.column_names:
        return "text"
    texts: list[str] = [
        name for name, one in table.features.items() if getattr(one, "dtype", "") in ("string", "large_string")
    ]
    if len(texts) == 1:
        return texts[0]
    has = f"columns of text are {listed(texts)}" if texts else f"its columns are {listed(table.column_names)}"
    raise DataError(f"{source} has no column `text`; {has}: say which holds the texts, or the lists of words")
