"""Answers for many rows, into a file: whole or not there, whatever happens meanwhile, and shared among processes.

A thousand rows are a part, a file of its own in ``OUTPUT.parts`` until all are there. What a killed process has written
stays; the same call, with as many processes or another number, answers the rest.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from nlp_mtl.errors import RunError, listed
from nlp_mtl.inference.parts import Parts
from nlp_mtl.inference.predictor import Answer, Predictor
from nlp_mtl.inference.processes import launched_processes
from nlp_mtl.inference.rows import ROWS_READ, Rows
from nlp_mtl.inference.texts import as_json, groups, joined, pair_size
from nlp_mtl.storage import held
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

ROWS_AT_ONCE = 1024
"""Rows of a part; what is lost by a kill, at most, in each process."""

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

    Of rows and answers no more is held at a time than :meth:`Predictor.stream` holds.

    Args:
        output: ``.jsonl``: a line a row, with what is kept, ``text`` (and ``text_pair``) and ``predictions``;
            ``.parquet``: the same as columns.
        tasks, all_scores: as in a call of the predictor.
        overwrite: replace a file that is there, once the new one is whole; and remove what another job has left.
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
    if not names:
        raise RunError("no task is asked for: name some, or none to have all")
    schema = _schema(rows, chosen, all_scores)
    with held(parts.folder) if state.is_main_process else nullcontext():
        missing: list[int] = []
        if state.is_main_process:
            job = {
                "rows": rows.digest(),
                "columns": [rows.text, rows.text_pair, *rows.keep],
                "rows_of_a_part": ROWS_AT_ONCE,
                "model": nlp.digest(),
                "tasks": names,
                "all_scores": all_scores,
                "mixed_precision": nlp.mixed_precision,
            }
            missing = parts.start(job, num_parts, overwrite)
        (missing,) = broadcast_object_list([missing])  # one process looks: others may see a shared folder later
        total = sum(len(_rows_of(rows, number)) for number in missing)
        hidden = not (progress and state.is_main_process)
        with tqdm(total=len(rows), initial=len(rows) - total, desc="Predicting", unit="text", disable=hidden) as bar:
            for number in missing[state.process_index :: state.num_processes]:
                found = _answered(nlp, rows, _rows_of(rows, number), names, all_scores)
                if output.suffix == ".jsonl":
                    parts.write_lines(number, _lines(rows, found))
                else:
                    parts.write_tables(number, _tables(rows, found, schema), schema)
                bar.update(min(len(_rows_of(rows, number)) * state.num_processes, len(rows) - bar.n))
        state.wait_for_everyone()
        if state.is_main_process:
            parts.join(num_parts, schema)
    return total


def _rows_of(rows: Rows, part: int) -> range:
    return range(part * ROWS_AT_ONCE, min((part + 1) * ROWS_AT_ONCE, len(rows)))


class _Answered(NamedTuple):
    """Some rows that follow each other."""

    where: range
    texts: list[Any]
    text_pair: list[Any] | None
    answers: list[Answer]


def _answered(nlp: Predictor, rows: Rows, where: range, tasks: Sequence[str], all_scores: bool) -> Iterator[_Answered]:
    """Rows with their answers, as many at a time as are answered together."""
    done = where.start
    for group in groups(rows.texts(where), pair_size, ROWS_AT_ONCE):
        texts = [text for text, _ in group]
        text_pair = None if rows.text_pair is None else [second for _, second in group]
        answers = nlp(texts, text_pair=text_pair, tasks=tasks, all_scores=all_scores)
        yield _Answered(range(done, done + len(group)), texts, text_pair, answers)
        done += len(group)


def _lines(rows: Rows, found: Iterator[_Answered]) -> Iterator[str]:
    for where, texts, text_pair, answers in found:
        for place, kept in enumerate(rows.kept(where)):
            second = {} if text_pair is None else {"text_pair": text_pair[place]}
            yield as_json({**kept, "text": joined(texts[place]), **second, "predictions": answers[place]})


def _tables(rows: Rows, found: Iterator[_Answered], schema: pa.Schema) -> Iterator[pa.Table]:
    for where, texts, text_pair, answers in found:
        at_once = ROWS_READ if rows.keep else len(where)  # what is kept may be larger than texts
        for start in range(0, len(where), at_once):
            some = slice(start, start + at_once)
            columns = {name: rows.column(name, where[some]) for name in rows.keep}
            columns["text"] = [joined(text) for text in texts[some]]
            if text_pair is not None:
                columns["text_pair"] = text_pair[some]
            columns["predictions"] = answers[some]
            yield pa.table(columns, schema=schema)


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
