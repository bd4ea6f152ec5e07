"""Answers for many rows, into a file: whole or not there, whatever happens meanwhile, and shared among processes.

Rows are answered a thousand at a time, and each thousand is a file of its own in ``OUTPUT.parts`` until all are there.
What a killed process has written stays; the same call, with as many processes or another number, answers the rest.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from nlp_mtl.errors import RunError, listed
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.processes import launched_processes
from nlp_mtl.inference.rows import Rows
from nlp_mtl.inference.texts import as_json, joined
from nlp_mtl.storage import cannot_write, held, write_text, written_file
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

ROWS_AT_ONCE = 1024
"""Rows of a part; what is lost by a kill, at most, in each process."""

_PARTS_IN_A_GROUP = 64
"""Parts that make a row group of a Parquet file."""

FORMATS = (".jsonl", ".parquet")


def predict_rows(
    nlp: Predictor,
    rows: Rows,
    output: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    all_scores: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> int:
    """Answer all rows into a file, in their order.

    Args:
        output: ``.jsonl``: a line a row, with what is kept, ``text`` (and ``text_pair``) and ``predictions``;
            ``.parquet``: the same as columns.
        tasks, all_scores: as in a call of the predictor.
        overwrite: remove a file that is there, and what an earlier call has left.
        progress: show a bar.

    Returns:
        the number of rows that were answered now; others were by an earlier call.

    Raises:
        RunError: the file is there, another job was begun for it, or it cannot be written; or processes that were
            started do not find each other.
        ModelError: a task cannot answer; nothing was written.
    """
    output = Path(output).expanduser().absolute()
    if output.suffix not in FORMATS:
        raise RunError(f"{output} should end in {listed(FORMATS)}, which says how it is written")
    if clash := sorted({"text", "text_pair", "predictions"} & {*rows.keep}):
        raise RunError(f"columns that are kept cannot be called {listed(clash)}: those of the answers are")
    chosen = nlp.chosen_tasks(tasks, is_pair=rows.text_pair is not None)
    state = launched_processes()
    parts, num_parts = Parts(output), -(-len(rows) // ROWS_AT_ONCE)
    names = [task.name for task in chosen]
    job = {
        "rows": rows.digest(),
        "model": nlp.digest(),
        "tasks": names,
        "all_scores": all_scores,
        "mixed_precision": nlp.mixed_precision,
    }
    schema = _schema(rows, chosen, all_scores)
    with held(parts.folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            parts.start(job, overwrite)
        state.wait_for_everyone()
        missing = [number for number in range(num_parts) if not parts.file(number).exists()]
        state.wait_for_everyone()  # all have seen what is there
        total = sum(_size(rows, number) for number in missing)
        hidden = not (progress and state.is_main_process)
        with tqdm(total=len(rows), initial=len(rows) - total, desc="Predicting", unit="text", disable=hidden) as bar:
            for number in missing[state.process_index :: state.num_processes]:
                size = _size(rows, number)
                texts, text_pair, columns = rows.batch(number * ROWS_AT_ONCE, number * ROWS_AT_ONCE + size)
                columns["text"] = [joined(text) for text in texts]
                if text_pair is not None:
                    columns["text_pair"] = text_pair
                columns["predictions"] = nlp(texts, text_pair=text_pair, tasks=names, all_scores=all_scores)
                parts.write(number, columns, schema)
                bar.update(min(size * state.num_processes, len(rows) - bar.n))
        state.wait_for_everyone()
        if state.is_main_process:
            parts.join(num_parts, schema)
    return total


def _size(rows: Rows, part: int) -> int:
    return min(ROWS_AT_ONCE, len(rows) - part * ROWS_AT_ONCE)


class Parts:
    """The parts of a file that is being written, in a folder beside it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")

    def file(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{number:09}{self.output.suffix}"

    def start(self, job: Mapping[str, Any], overwrite: bool) -> None:
        """Begin a job, or go on with it.

        Raises:
            RunError: the file is there, or parts of another job are; nothing was changed.
        """
        file = self.folder / "job.json"
        begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if begun is None and any(self.folder.iterdir()):
            raise RunError(f"{self.folder} holds something else: choose another --output")
        if not overwrite and self.output.exists():
            raise RunError(f"{self.output} is there already: choose another --output, or --overwrite")
        if not overwrite and begun is not None and begun != job:
            changed = [key for key in job if begun.get(key) != job[key]]
            raise RunError(
                f"{self.folder} holds answers of another job ({listed(changed)} differ): --overwrite removes them, and "
                "starts again"
            )
        try:
            if overwrite:
                self.output.unlink(missing_ok=True)
                for path in self.folder.iterdir():
                    path.unlink()
            write_text(file, json.dumps(job) + "\n")
        except OSError as error:
            raise cannot_write(self.output, error) from error

    def write(self, number: int, columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> None:
        """Write a part, whole or not at all.

        Raises:
            RunError: it cannot be written.
        """
        file = self.file(number)
        try:
            if file.suffix == ".jsonl":
                names = list(columns)
                lines = (as_json(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True))
                write_text(file, "".join(f"{line}\n" for line in lines))
            else:
                with written_file(file) as partial:
                    pq.write_table(pa.table(dict(columns), schema=schema), partial)
        except OSError as error:
            raise cannot_write(self.output, error) from error

    def join(self, count: int, schema: pa.Schema) -> None:
        """Make the file of all its parts, and remove them.

        Raises:
            RunError: it cannot be written; the parts stay.
        """
        files = [self.file(number) for number in range(count)]
        try:
            with written_file(self.output) as partial:
                if self.output.suffix == ".jsonl":
                    with partial.open("wb") as whole:
                        for file in files:
                            with file.open("rb") as part:
                                shutil.copyfileobj(part, whole)
                else:
                    _join_tables(files, partial, schema)
            shutil.rmtree(self.folder)
        except OSError as error:
            raise cannot_write(self.output, error) from error


def _join_tables(files: Sequence[Path], whole: Path, schema: pa.Schema) -> None:
    with pq.ParquetWriter(whole, schema) as writer:
        for first in range(0, len(files), _PARTS_IN_A_GROUP):
            table = pa.concat_tables([pq.read_table(file) for file in files[first : first + _PARTS_IN_A_GROUP]])
            writer.write_table(table, row_group_size=len(table))


def _schema(rows: Rows, tasks: Sequence[Task], all_scores: bool) -> pa.Schema:
    """The columns of a Parquet file."""
    features = rows.table.features.arrow_schema
    kept = [features.field(name).remove_metadata() for name in rows.keep]
    texts = [("text", pa.string()), *([] if rows.text_pair is None else [("text_pair", pa.string())])]
    predictions = pa.struct([(task.name, answer_type(task, all_scores)) for task in tasks])
    return pa.schema([*kept, *texts, ("predictions", predictions)])


def answer_type(task: Task, all_scores: bool) -> pa.DataType:
    """The type of a task's answers, as a column."""
    kind = kind_of(task)
    if kind.label_set == "none":
        return pa.struct([("value", pa.float64())])
    labels = [("label", pa.string()), ("score", pa.float64())]
    if kind.label_set == "many":
        return pa.list_(pa.struct([*labels, *([("holds", pa.bool_())] if all_scores else [])]))
    scores = [("scores", pa.struct([(label, pa.float64()) for label in task.labels]))] if all_scores else []
    if not kind.reads_words:
        return pa.struct([*labels, *scores])
    where = [("text", pa.string()), labels[0], ("start", pa.int64()), ("end", pa.int64()), labels[1]]
    return pa.list_(pa.struct([*where, *scores]))
