"""The rows of a file, a folder or a dataset on the Hub, which are to be answered."""

import hashlib
import logging
from collections.abc import Sequence
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

_TEXT_ENDINGS = ("txt", "text")

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

    def batch(self, start: int, stop: int) -> tuple[list[Any], list[Any] | None, dict[str, list[Any]]]:
        """Texts, their second ones, and the columns that are kept, of some rows. A null is an empty text."""
        columns = self.table[start:stop]
        empty: Any = [] if self.is_words else ""
        first = [empty if value is None else value for value in columns[self.text]]
        if self.is_words:
            first = [["" if word is None else word for word in words] for words in first]
        second = (
            None if self.text_pair is None else ["" if value is None else value for value in columns[self.text_pair]]
        )
        return first, second, {name: columns[name] for name in self.keep}

    def digest(self) -> str:
        """A checksum of what is read and kept."""
        digest = hashlib.sha256()
        for batch in self.table.with_format("arrow").iter(10_000):
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
    chosen = list(dict.fromkeys([*texts, *keep]))
    return Rows(table.select_columns(chosen), column, text_pair, tuple(dict.fromkeys(keep)))


def _read_file(source: str, path: Path) -> datasets.Dataset:
    if ending_of(path) not in _TEXT_ENDINGS:
        (table,) = read_files(source, None, {"rows": str(path.absolute())}, "/", None, None)["rows"].values()
        return table
    try:
        options = {"data_files": {"rows": [str(path.absolute())]}, "encoding_errors": "replace"}
        table = load_local("text", [path], **options)["rows"]
    except (OSError, EOFError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        problem = first_line(error.__cause__ or error)
        problem = "it is empty" if "at least one example" in problem else problem
        raise DataError(f"{source} cannot be read: {problem}") from error
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
