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

_JOB = "job.json"
_OURS = re.compile(rf"(\d{{9,}}\.(jsonl|parquet)|{re.escape(_JOB)})({re.escape(PARTIAL)})?")


class Parts:
    """The parts of a file, in a folder beside it, with the job that they belong to."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")

    def file(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{number:09}{self.output.suffix}"

    def start(self, job: Mapping[str, Any], overwrite: bool) -> None:
        """Begin a job, or go on with it; its folder is there.

        Args:
            overwrite: another job's parts make way, and in the end the file.

        Raises:
            RunError: the file is there, or parts of another job are; nothing was changed.
        """
        file = self.folder / _JOB
        begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
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
            return
        try:
            self._clear()  # also what a kill left of parts whose job was not yet, or no longer, written
            write_text(file, json.dumps(job) + "\n")
        except OSError as error:
            raise cannot_write(self.output, error) from error

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
        """Make the file of all its parts, and remove them.

        Raises:
            RunError: it cannot be written; the parts stay.
        """
        files = [self.file(number) for number in range(count)]
        with written_file(self.output) as partial:
            if self.output.suffix == ".jsonl":
                with partial.open("wb") as whole:
                    for file in files:
                        with file.open("rb") as part:
                            shutil.copyfileobj(part, whole)
            else:
                join_tables(files, partial, schema)
        try:
            self._clear()
            self.folder.rmdir()
        except OSError as error:
            raise cannot_write(self.folder, error) from error


def join_tables(files: Sequence[Path], whole: Path, schema: pa.Schema) -> None:
    """One Parquet file of several, in row groups that are not small; no more of them is held at a time."""
    with pq.ParquetWriter(whole, schema) as writer:
        held: list[pa.Table] = []
        for file in files:
            with pq.ParquetFile(file) as part:
                for group in range(part.num_row_groups):
                    held.append(part.read_row_group(group))
                    if sum(table.nbytes for table in held) >= _GROUP_BYTES:
                        _write_group(writer, held)
                        held = []
        _write_group(writer, held)


def _write_group(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    if tables:
        table = pa.concat_tables(tables)
        writer.write_table(table, row_group_size=len(table))
