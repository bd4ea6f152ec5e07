"""Files of text, read row by row: each row with the line where it ends, and no guess at types."""

import csv
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import fsspec

from nlp_mtl.errors import DataError, first_line, listed

CONLLU_COLUMNS = ["id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"]
TEXT_FORMATS = ("json", "csv", "tsv", "conll", "conllu")


class BrokenRow(ValueError):
    """A line that is not what its format says; the message begins with its number."""


Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row]]
"""Rows, each with the number of its last line, from 1 on."""


def read_rows(place: str, file: str, form: str, columns: Sequence[str] | None, delimiter: str | None) -> Numbered:
    """The rows of a file in one of :data:`TEXT_FORMATS`, also compressed or remote, as ``datasets`` would give them.

    Args:
        place: dataset and split, for messages.
        columns, delimiter: as in a recipe.

    Raises:
        DataError: the file cannot be read, or a line of it; it names the line.
    """
    line = 0
    try:
        with opened(file) as text:
            for line, row in _READERS[form](text, list(columns or ()), delimiter):
                yield line, row
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {file} cannot be read: {not_text(file)}") from error
    except BrokenRow as error:
        raise DataError(f"{place}: {file} cannot be read: {error}") from error
    except (ValueError, OSError, EOFError, ImportError, csv.Error, zlib.error) as error:
        raise DataError(f"{place}: {file} cannot be read: it stops behind line {line}: {first_line(error)}") from error


def opened(file: str, mode: str = "rt") -> Any:
    """A file of text (``rb``: its bytes), also compressed or remote, to be used in a ``with`` block."""
    text = {} if "b" in mode else {"encoding": "utf-8-sig", "newline": ""}
    return fsspec.open(file, mode, compression="infer", **text)


def not_text(file: str) -> str:
    """What is wrong with the first line that is no UTF-8; empty if there is none, or the file cannot be seen."""
    try:
        with opened(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    return f"line {number} is not text in UTF-8 (byte {line[error.start]:#04x}): save it as UTF-8"
    except (ValueError, OSError, EOFError, ImportError, zlib.error):
        pass  # out of reach, cut, or not compressed after all: the reader's own error tells
    return ""


def json_object(line: str, number: int) -> Row:
    """The object that a line of JSON Lines holds.

    Raises:
        BrokenRow: it holds none.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BrokenRow(f"line {number} is not valid JSON: {error.msg} at character {error.pos + 1}") from error
    return _object(row, number)


def _object(value: Any, number: int) -> Row:
    if not isinstance(value, dict):
        raise BrokenRow(f"line {number} is not a JSON object: {json.dumps(value)[:60]}")
    return value


def width_problem(fields: Sequence[str], columns: Sequence[str]) -> str:
    """What is wrong with a line of CoNLL that has not as many columns as are named."""
    return f"has {len(fields)} columns ({listed(fields)}), but `columns` names {len(columns)}: {listed(columns)}"


def _json(text: TextIO, _: list[str], __: str | None) -> Numbered:
    first = text.readline()
    if first.lstrip().startswith("["):  # one list of objects, which is not read line by line
        for row in json.loads(first + text.read()):
            yield 1, _object(row, 1)
        return
    for number, line in enumerate(_with(first, text), start=1):
        if line.strip():
            yield number, json_object(line, number)


def _with(first: str, rest: TextIO) -> Iterator[str]:
    yield first
    yield from rest


def _csv(text: TextIO, columns: list[str], delimiter: str | None) -> Numbered:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts may be long
    return _fields(csv.reader(text, delimiter=delimiter or ",", strict=True), columns)


def _tsv(text: TextIO, columns: list[str], delimiter: str | None) -> Numbered:
    # The format has no quoting: 5" nails
    return _fields(csv.reader(text, delimiter=delimiter or "\t", quoting=csv.QUOTE_NONE), columns)


def _fields(rows: Any, columns: list[str]) -> Numbered:
    names = columns or next(rows, [])
    for fields in rows:
        if fields == columns:
            raise ValueError("it has a header of its own; leave out `columns`, which is for files without one")
        if len(fields) > len(names):
            raise BrokenRow(f"line {rows.line_num} has {len(fields)} fields, but there are {len(names)} columns")
        if fields:  # an empty field is null, and so is one that is not there
            yield rows.line_num, {name: field or None for name, field in _padded(names, fields)}


def _padded(names: list[str], fields: list[str]) -> Iterator[tuple[str, str]]:
    return zip(names, fields + [""] * (len(names) - len(fields)), strict=True)


def _conll(text: TextIO, columns: list[str], delimiter: str | None, comment: str = "") -> Numbered:
    sentence: list[list[str]] = []
    number = 0
    for number, raw in enumerate(text, start=1):
        line = raw.rstrip("\r\n")
        if not line.strip():
            if sentence:
                yield number, _sentence(columns, sentence)
                sentence = []
        elif not line.startswith("-DOCSTART-") and not (comment and line.startswith(comment)):
            fields = line.split(delimiter)
            if len(fields) != len(columns):
                raise BrokenRow(f"line {number} {width_problem(fields, columns)}")
            sentence.append(fields)
    if sentence:
        yield number, _sentence(columns, sentence)


def _conllu(text: TextIO, _: list[str], __: str | None) -> Numbered:
    for number, row in _conll(text, CONLLU_COLUMNS, "\t", comment="#"):
        cleaned = clean_conllu({column: [values] for column, values in row.items()})
        yield number, {column: values[0] for column, values in cleaned.items()}


def _sentence(columns: list[str], lines: list[list[str]]) -> Row:
    return {column: list(values) for column, values in zip(columns, zip(*lines, strict=True), strict=True)}


_READERS: dict[str, Callable[[TextIO, list[str], str | None], Numbered]] = {
    "json": _json, "csv": _csv, "tsv": _tsv, "conll": _conll, "conllu": _conllu,
}  # fmt: skip


def clean_conllu(batch: dict[str, list[list[str]]]) -> dict[str, list[list[str | None]]]:
    """Without multi-word ranges (1-2) and empty nodes (1.1), ``_`` as null: the syntactic words remain."""
    keep = [[not ({"-", "."} & set(number)) for number in row] for row in batch["id"]]
    return {
        column: [
            [
                None if value == "_" and column != "form" else value
                for value, kept in zip(row, keeps, strict=True)
                if kept
            ]
            for row, keeps in zip(rows, keep, strict=True)
        ]
        for column, rows in batch.items()
    }
