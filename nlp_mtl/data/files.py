"""Data files on this machine: found, their format told by the ending, each read by itself."""

import csv
import glob
import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from nlp_mtl.data.text_files import (
    CONLLU_COLUMNS,
    BrokenRow,
    clean_conllu,
    json_object,
    not_text,
    opened,
    width_problem,
)
from nlp_mtl.errors import DataError, did_you_mean, first_line, listed

ENDINGS = {
    "jsonl": "json", "json": "json", "csv": "csv", "tsv": "tsv", "parquet": "parquet",
    "conllu": "conllu",
}  # fmt: skip
FORMATS = ("conll", "conllu", "csv", "json", "parquet", "tsv")
_NO_ROWS = ("corresponds to no data", "No columns to parse", "at least one example")
"""What the readers say of an empty file."""
_WHOLE = 1 << 30
"""So many bytes of a JSON file, or rows of a CSV file, are all of it."""


def read_files(
    dataset: str,
    path: str | None,
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]],
    data_dir: str,
    columns: Sequence[str] | None,
    delimiter: str | None,
) -> dict[str, dict[str, datasets.Dataset]]:
    """The rows of each file: ``{split: {file: rows}}``. The arguments are those of ``load_splits``.

    Each file is read by itself, so that files may differ in columns nobody asked for and a message can name one.

    Raises:
        DataError: a file is missing, empty or broken, or its format cannot be told.
    """
    given = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    files = {split: find_files(dataset, patterns, data_dir) for split, patterns in given.items()}
    read: dict[str, dict[str, datasets.Dataset]] = {}
    for split, found in files.items():
        read[split] = {}
        for file in found:
            rows = _read_file(dataset, split, file, path or format_of(dataset, file), columns, delimiter)
            if not len(rows):
                raise DataError(f"dataset `{dataset}`, split {split}: {file} is empty")
            read[split][file] = rows
    return read


def find_files(dataset: str, patterns: str | Sequence[str], data_dir: str) -> list[str]:
    """The files of one split; patterns may hold ``*``."""
    found = []
    if not patterns:
        raise DataError(f"dataset `{dataset}`: data_files names no file: {patterns!r}")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if "://" in pattern:
            found.append(pattern)
            continue
        full = Path(data_dir) / Path(pattern).expanduser()
        matches = [str(full)] if full.is_file() else sorted(filter(_is_file, glob.glob(str(full), recursive=True)))
        if full.is_dir():
            raise DataError(f"dataset `{dataset}`: data file `{pattern}` is a folder; say `{pattern}/*`")
        if not matches:
            is_empty = not full.parent.is_dir() or not any(full.parent.iterdir())
            raise DataError(
                f"dataset `{dataset}`: data file `{pattern}`: {no_such_file(full)}"
                + (" Is `data_dir` right?" if is_empty else "")
            )
        found += matches
    return list(dict.fromkeys(found))


def no_such_file(path: Path) -> str:
    """Where a file is missing, and which may be meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder `{folder}`."
    return f"no such file in `{folder}`." + did_you_mean(path.name, [file.name for file in folder.iterdir()])


def _is_file(name: str) -> bool:
    return Path(name).is_file()


def ending_of(file: str | Path) -> str:
    """Of a file's name, without that of its compression."""
    endings = [ending.lstrip(".").lower() for ending in Path(file).suffixes]
    return next((ending for ending in reversed(endings) if ending not in ("gz", "bz2", "xz", "zst")), "")


def format_of(dataset: str, file: str) -> str:
    """The format that a file's ending tells."""
    if (ending := ending_of(file)) in ENDINGS:
        return ENDINGS[ending]
    raise DataError(
        f"dataset `{dataset}`: the ending of {file} tells no format; say `path:` with one of {listed(FORMATS)}"
    )


def reader_of(
    dataset: str, file: str, form: str, columns: Sequence[str] | None, delimiter: str | None
) -> tuple[str, dict[str, Any]]:
    """What in `datasets` reads a format, and its arguments."""
    if columns and form not in ("csv", "tsv", "conll"):
        raise DataError(f"dataset `{dataset}`: {file} has names of its own; `columns` is for CSV, TSV and CoNLL files")
    if delimiter and form not in ("csv", "tsv", "conll"):
        raise DataError(f"dataset `{dataset}`: `delimiter` is for CSV, TSV and CoNLL files, which {file} is not")
    if form in ("csv", "tsv"):
        # "NA" and "None" are labels and texts like others: only an empty field is null.
        arguments: dict[str, Any] = {"sep": delimiter or ",", "keep_default_na": False, "na_values": [""]}
        if form == "tsv":  # the format has no quoting: 5" nails
            arguments |= {"sep": delimiter or "\t", "quoting": csv.QUOTE_NONE}
        if columns:  # without a header
            arguments["column_names"] = list(columns)
        return "csv", arguments
    if form == "conllu":
        return "conll", {"column_names": CONLLU_COLUMNS, "delimiter": "\t", "comment_prefix": "#"}
    if form == "conll":
        return "conll", {"column_names": list(columns or ()), "delimiter": delimiter}
    return form, {}


def _read_file(
    dataset: str, split: str, file: str, form: str, columns: Sequence[str] | None, delimiter: str | None
) -> datasets.Dataset:
    builder, arguments = reader_of(dataset, file, form, columns, delimiter)
    if form == "conll":
        _check_width(dataset, split, file, list(columns or ()), delimiter)
    try:
        rows = _load(builder, split, file, arguments)
    except StopIteration:  # what the JSON reader does at the end of an empty file
        raise DataError(f"dataset `{dataset}`, split {split}: {file} is empty") from None
    except (DatasetGenerationError, ValueError, OSError, EOFError, ImportError) as error:
        cause = (error.__cause__ or error) if isinstance(error, DatasetGenerationError) else error
        if any(words in str(cause) for words in _NO_ROWS):
            raise DataError(f"dataset `{dataset}`, split {split}: {file} is empty (it holds no rows)") from error
        is_seen_into = form != "parquet" and not file.endswith((".bz2", ".xz", ".zst"))
        problem = not_text(file) if is_seen_into else ""
        problem = problem or (_broken_line(file) if form == "json" else "") or first_line(cause)
        if "Error tokenizing" in problem:
            problem += " (a field that holds the delimiter is put in double quotes; `delimiter` names another one)"
        raise DataError(f"dataset `{dataset}`, split {split}: {file} cannot be read: {problem}") from error
    if form == "json":
        check_utf8(f"dataset `{dataset}`, split {split}", rows, file)
    if columns and form != "conll" and list(rows[0].values()) == list(columns):
        raise DataError(
            f"dataset `{dataset}`, split {split}: {file} has a header of its own; leave out `columns`, "
            "which is for files without one"
        )
    if "__index_level_0__" in rows.column_names:
        raise DataError(f"dataset `{dataset}`, split {split}: the rows of {file} have more fields than its header")
    if form == "conllu":
        rows = rows.map(clean_conllu, batched=True, desc=f"{dataset}: CoNLL-U")
    return rows


def check_utf8(place: str, rows: datasets.Dataset, *files: str) -> None:
    """That all texts are UTF-8, which the JSON reader takes for granted.

    Raises:
        DataError: some are not; it names the file and the line.
    """
    try:
        rows.data.validate(full=True)
    except pa.ArrowInvalid as error:
        for file in files:
            if problem := not_text(file):
                raise DataError(f"{place}: {file} cannot be read: {problem}") from error
        raise DataError(f"{place} cannot be read: {first_line(error)}") from error


def _check_width(dataset: str, split: str, file: str, columns: Sequence[str], delimiter: str | None) -> None:
    """That a CoNLL file has as many columns as are named: the reader would drop the others, wrongly named or not."""
    if "://" in file:
        return
    try:
        with opened(file) as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.rstrip("\r\n").split(delimiter)
                is_token = line.strip() and not line.startswith(("-DOCSTART-", "# "))
                if is_token and len(fields) != len(columns):
                    told = width_problem(fields, columns)
                    raise DataError(f"dataset `{dataset}`, split {split}: line {number} of {file} {told}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
        return  # the reader's own error tells


def load_local(source: str, files: Iterable[str | Path], **options: Any) -> dict[str, datasets.Dataset]:
    """``datasets.load_dataset`` of local files, read anew whenever one of them was written.

    `datasets` knows files by path and modification time, which copying and unpacking keep. ``ctime`` changes
    with every write, and nobody can set it.
    """
    stats = [(str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns, os.stat(file).st_ctime_ns) for file in files]
    stamp = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "nlp_mtl" / stamp
    loaded = datasets.load_dataset(source, cache_dir=str(folder), **options)
    return {
        str(split): datasets.Dataset(rows.data, rows.info, rows.split, fingerprint=f"{rows._fingerprint}-{stamp}")
        for split, rows in loaded.items()
    }


def _load(builder: str, split: str, file: str, arguments: Mapping[str, Any]) -> datasets.Dataset:
    name = re.sub(r"\W", "_", split)  # what the builder takes as a name of a split
    try:
        if "://" in file:
            rows: datasets.Dataset = datasets.load_dataset(builder, data_files={name: [file]}, split=name, **arguments)
            return rows
        pattern = glob.escape(file)  # it is found already: no more patterns
        return load_local(builder, [file], data_files={name: [pattern]}, **arguments)[name]
    except DatasetGenerationError:
        # A column's type is told by the first 10 MB or 10,000 rows. Where these hold nulls only, see all of them.
        if builder not in ("json", "csv") or "chunksize" in arguments:
            raise
        with suppress(DatasetGenerationError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nulls come before texts
            return _load(builder, split, file, {**arguments, "chunksize": _WHOLE})
        raise


def _broken_line(file: str) -> str:
    """The first line of a JSON Lines file that is no object; empty if there is none or this is another JSON."""
    try:
        with opened(file) as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1 and line.startswith("["):
                    break
                if line.strip():
                    json_object(line, number)
    except BrokenRow as error:
        return str(error)
    except (OSError, EOFError, zlib.error):
        pass  # cut, or not gzip after all: the reader's own error tells
    return ""
