"""``review.jsonl``: rows with likely errors, for a person to mend; written, and read when it is edited."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nlp_mtl.analysis.label_errors import Judged, named
from nlp_mtl.build_data import Prepared
from nlp_mtl.data.text_files import BrokenRow, json_object, opened
from nlp_mtl.errors import DataError, did_you_mean, first_line, listed
from nlp_mtl.label_error_edits import ROWS_AT_ONCE, Edits, targets
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.chains import breaks, iob2_transitions
from nlp_mtl.task_types.kind import Target
from nlp_mtl.tasks import MISSING, Task


def shown_rows(prepared: Prepared, rows: Iterable[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
    """What is shown of training rows, by their datasets and their places there.

    Returns:
        of each ``row``, its number in the split that it was read from, counted from 0 over all files; and its text,
        texts or words under the keys that recipes have: ``text``, ``text_pair``, ``tokens``.
    """
    found = {}
    wanted: dict[str, set[int]] = {}
    for dataset, row in rows:
        wanted.setdefault(dataset, set()).add(row)
    for dataset, places in wanted.items():
        loaded = prepared.loaded[dataset]
        split, keys = loaded.splits["train"], ["tokens"] if loaded.is_words else ["text", "text_pair"]
        chosen = sorted(places)
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            part = chosen[start : start + ROWS_AT_ONCE]
            columns = split.rows.select_columns(loaded.text_columns)[part]
            for place, texts in zip(
                part, zip(*(columns[one] for one in loaded.text_columns), strict=True), strict=True
            ):
                told = dict(zip(keys, texts, strict=False))
                found[dataset, place] = {"row": int(split.source_rows[place]), **told}
    return found


def review_lines(
    judged: Judged,
    places: np.ndarray,
    proposals: np.ndarray,
    scores: np.ndarray,
    shown: Mapping[tuple[str, int], Mapping[str, Any]],
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Lines of ``review.jsonl``, one a row of one task, each with the lowest score of what is listed there.

    A line has ``given``, ``proposed`` and ``label`` in one form: a label; a list of labels; of words one for each word,
    null where it has none. ``label`` begins as ``given``: what a person writes there is what will be learned.

    Args:
        places: of the items that are listed.
        proposals: what should stand there.
        scores: [items] of all, which they are ranked by.
        shown: what :func:`shown_rows` gives for their rows.
    """
    task, proposal_of = judged.task, dict(zip(places.tolist(), proposals, strict=True))
    for (dataset, row), items, doubtful in judged.by_row(places):
        head: dict[str, Any] = {"dataset": dataset, **shown[dataset, row], "task": task.name}
        if kind_of(task).reads_words:
            given: Any = [None] * len(head["tokens"])
            for item in items.tolist():
                given[judged.items.words[item]] = named(task, judged.items.given[item])
            proposed, suspects = [*given], []
            for item in doubtful.tolist():
                word, label = int(judged.items.words[item]), named(task, proposal_of[item])
                suspects.append({"word": word, "token": head["tokens"][word], "given": given[word], "proposed": label})
                proposed[word] = label
            head["suspects"] = suspects
        else:
            given, proposed = (
                named(task, one) for one in (judged.items.given[doubtful[0]], proposal_of[int(doubtful[0])])
            )
        yield float(scores[doubtful].min()), {**head, "given": given, "proposed": proposed, "label": given}


def read_review(file: Path, prepared: Prepared) -> Edits:
    """What an edited ``review.jsonl`` wants to have changed. Lines may be missing, and in any order.

    Raises:
        DataError: a line is broken, is of other data than there are, or has a label that cannot be; it tells which.
    """
    edits: Edits = {}
    seen: dict[tuple[str, int, str], int] = {}
    for number, line in _lines(file):
        where = f"{file}, line {number}"
        task, dataset, place = _found(prepared, line, where)
        (now,) = targets(prepared, dataset, [place])
        if _names(task, now[task.name]) != line.get("given"):
            raise DataError(
                f"{where}: the row's label in the data is {_names(task, now[task.name])!r:.60}, not what `given` says: "
                "the data were changed since the line was written; write a new file, --review"
            )
        key = (dataset, place, task.name)
        if (before := seen.setdefault(key, number)) != number:
            raise DataError(f"{where}: the row was on line {before} already, for the same task: keep one of them")
        if line["label"] == line["given"]:
            continue  # it stays, whatever it is
        target = _target(task, line["label"], now[task.name], where)
        edits.setdefault(dataset, {}).setdefault(place, {})[task.name] = target
    return edits


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with opened(str(file)) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json_object(line, number)
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such file") from error
    except (BrokenRow, OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error


def _found(prepared: Prepared, line: Mapping[str, Any], where: str) -> tuple[Task, str, int]:
    """The task, the dataset and the place of the row that a line is about."""
    if missing := [key for key in ("dataset", "row", "task", "given", "label") if key not in line]:
        raise DataError(f"{where}: {listed(missing)} is missing; lines have the keys that --review wrote")
    dataset, name, row = line["dataset"], line["task"], line["row"]
    tasks = {task.name: task for task in prepared.tasks if kind_of(task).label_set != "none"}
    if name not in tasks:
        raise DataError(f"{where}: there is no task {name!r:.60} with labels; there are {listed(tasks)}")
    trained = [key for key, of in prepared.encoded.items() if "train" in of and name in of["train"].tasks]
    if dataset not in trained:
        raise DataError(f"{where}: `{name}` reads no train rows of a dataset {dataset!r:.60}, but of {listed(trained)}")
    numbers = prepared.loaded[dataset].splits["train"].source_rows
    place = int(np.searchsorted(numbers, row)) if isinstance(row, int) and row >= 0 else len(numbers)
    if place >= len(numbers) or numbers[place] != row:
        raise DataError(f"{where}: `{dataset}` has no train row {row!r:.60}")
    for key, value in shown_rows(prepared, [(dataset, place)])[dataset, place].items():
        if line.get(key) != value:
            raise DataError(
                f"{where}: `{key}` is not that of the row in the data: {line.get(key)!r:.60} instead of {value!r:.60}. "
                "Only `label` is read; write a new file, --review, if the data were changed"
            )
    return tasks[name], dataset, place


def _names(task: Task, target: Target) -> Any:
    """A target in the form of a line."""
    if kind_of(task).reads_words:
        return [None if one == MISSING else task.labels[int(one)] for one in target]
    if not target:
        return None
    return named(task, np.asarray(target) if kind_of(task).label_set == "many" else target[0])


def _target(task: Task, label: Any, given: Target, where: str) -> Target:
    """The target that ``label`` of a line says; ``given``: that of the row in the data."""
    ids = {name: place for place, name in enumerate(task.labels)}

    def known(name: Any, of: str = "") -> int:
        if not isinstance(name, str) or name not in ids:
            near = did_you_mean(name, ids) if isinstance(name, str) else ""
            raise DataError(f"{where}: the label {name!r:.60}{of} is none of {listed(ids)} of `{task.name}`.{near}")
        return ids[name]

    kind = kind_of(task)
    if label is None:
        return []
    if kind.label_set == "one" and not kind.reads_words:
        return [known(label)]
    if not isinstance(label, list):
        raise DataError(f"{where}: `label` is {label!r:.60}, expected a list of labels")
    if kind.label_set == "many":
        chosen = {known(name) for name in label}
        return [int(place in chosen) for place in range(len(ids))]
    if len(label) != len(given):
        raise DataError(f"{where}: `label` has {len(label)} labels for {len(given)} words; each needs one, or null")
    target = [MISSING if name is None else known(name, f" of word {n}") for n, name in enumerate(label)]
    # Tags that were given may break the rules: nobody has to mend them all to mend one.
    if task.is_spans and (broken := _broken(task, target) - _broken(task, given)):
        word = min(broken)[0]
        raise DataError(
            f"{where}: {label[word]!r} of word {word} continues nothing (IOB2): a span begins with B-, and where one "
            "is taken out, all of it is null"
        )
    return target


def _broken(task: Task, target: Target) -> set[tuple[int, int, int]]:
    """The words whose tag IOB2 does not allow there, each with its tag and the one before; MISSING: there is none."""
    ids = np.array(target, dtype=np.int64)
    words = np.flatnonzero(ids != MISSING)
    is_first = np.diff(words, prepend=-2) != 1
    broken = words[breaks(ids[words], is_first, iob2_transitions(task.labels))].tolist()
    return {(word, target[word], target[word - 1] if word else MISSING) for word in broken}
