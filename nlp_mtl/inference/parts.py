"""A file that is written in parts, which lie beside it until all are there."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nlp_mtl.errors import RunError, listed
from nlp_mtl.storage import PARTIAL, cannot_write, write_text, written_file

_GROUP_BYTES = 64 * 1024 * 1024
"""Of a row group of a Parquet file, about."""

_JOB, _JOINED = "job.json", "joined.json"
_OURS = re.compile(rf"(\d{{9,}}\.(jsonl|parquet)|{re.escape(_JOB)}|{re.escape(_JOINED)})({re.escape(PARTIAL)})?")


class Parts:
    """The parts of a file, in a folder beside it, with the job that they belong to."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")

    def file(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{number:09}{self.output.suffix}"

    def start(self, job: Mapping[str, Any], count: int, overwrite: bool) -> list[int]:
        """Begin a job of so many parts, or go on with it; its folder is there.

        Args:
            overwrite: another job's parts make way, and in the end the file.

        Returns:
            the numbers of the parts that are missing; none where the file is whole.

        Raises:
            RunError: the file is there, or parts of another job are; nothing was changed.
        """
        file = self.folder / _JOB
        begun = _read(file)
        if begun == job and self.is_joined():
            return []
        if foreign := sorted(path.name for path in self.folder.iterdir() if not _OURS.fullmatch(path.name)):
            raise RunError(f"{self.folder} holds something else ({listed(foreign[:3])}): choose another --output")
        if not overwrite and self.output.exists():
            if begun is None and not any(self.folder.iterdir()):
                self.folder.rmdir()  # made to be held
            raise RunError(f"{self.output} is there already: choose another --output, or --overwrite")
        if not overwrite and begun is not None and begun != job:
            changed = [key for key in job if begun.get(key) != job[key]]
            raise RunError(
                f"{self.folder} holds answers of another job ({listed(changed)} differ): --overwrite removes them, and "
                "starts again"
            )
        if begun == job:
            return [number for number in range(count) if not self.file(number).exists()]
        try:
            self._clear()  # also what a kill left of parts whose job was not yet, or no longer, written
            write_text(file, json.dumps(job) + "\n")
        except OSError as error:
            raise cannot_write(self.output, error) from error
        return list(range(count))

    def is_joined(self) -> bool:
        """Whether the file is made of all parts, and a kill came before these were removed."""
        return self.output.exists() and _read(self.folder / _JOINED) == _looks(self.output)

    def _clear(self) -> None:
        """Remove all parts, and last what they belong to: a kill in between leaves what can be told."""
        for path in sorted(self.folder.iterdir(), key=lambda path: (path.name == _JOB, path.name)):
            path.unlink()

    def write_lines(self, number: int, lines: Iterable[str]) -> None:
        """Write a part of a ``.jsonl``, whole or not at all, a line at a time.

        Raises:
            RunError: it cannot be written.
        """
        with written_file(self.file(number)) as partial, partial.open("w", encoding="utf-8", newline="\n") as part:
            part.writelines(f"{line}\n" for line in lines)

    def write_tables(self, number: int, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Write a part of a ``.parquet``, whole or not at all, a table at a time.

        Raises:
            RunError: it cannot be written.
        """
        with written_file(self.file(number)) as partial, pq.ParquetWriter(partial, schema) as part:
            for table in tables:
                part.write_table(table)

    def join(self, count: int, schema: pa.Schema) -> None:
        """Make the file of all its parts, unless that was done, and remove them.

        Raises:
            RunError: it cannot be written; the parts stay.
        """
        if not self.is_joined():
            self._join([self.file(number) for number in range(count)], schema)
        try:
            self._clear()
            self.folder.rmdir()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _join(self, files: Sequence[Path], schema: pa.Schema) -> None:
        with written_file(self.output) as partial:
            if self.output.suffix == ".jsonl":
                with partial.open("wb") as whole:
                    for file in files:
                        with file.open("rb") as part:
                            shutil.copyfileobj(part, whole)
            else:
                join_tables(files, partial, schema)
            write_text(self.folder / _JOINED, json.dumps(_looks(partial)))


def join_tables(files: Sequence[Path], whole: Path, schema: pa.Schema) -> None:
    """One Parquet file of several, in row groups that are not small; no more of them is held at a time."""
    with pq.ParquetWriter(whole, schema) as writer:
        held: list[pa.Table] = []
        size = 0
        for file in files:
            with pq.ParquetFile(file) as part:
                for group in range(part.num_row_groups):
                    held.append(part.read_row_group(group))
                    size += held[-1].nbytes
                    if size >= _GROUP_BYTES:
                        _write_group(writer, held)
                        held, size = [], 0
        _write_group(writer, held)


def _read(file: Path) -> Any:
    """What a file says; None where there is none, and nothing that is known where it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _looks(file: Path) -> list[int]:
    """What a file keeps when it is renamed, and another has otherwise."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _write_group(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    if tables:
        table = pa.concat_tables(tables)
        writer.write_table(table, row_group_size=len(table))
