"""A dataset with other labels than the recipe's: some taken out, some mended; input files are never touched."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from nlp_mtl.analysis.label_errors import Judged
from nlp_mtl.build_data import Prepared
from nlp_mtl.data.columns import items_of
from nlp_mtl.data.encoded_splits import label_column
from nlp_mtl.data.labels import LabelReader, type_of
from nlp_mtl.data.loading import LoadedDataset, LoadedSplit
from nlp_mtl.errors import DataError
from nlp_mtl.inference.texts import as_json
from nlp_mtl.recipe import Recipe
from nlp_mtl.storage import written_folder
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.kind import Target
from nlp_mtl.tasks import MISSING, Task, iob_spans

Edits = dict[str, dict[int, dict[str, Target]]]
"""``{dataset: {place of a training row: {task: its target from now on}}}``, of tasks with label sets."""

ROWS_AT_ONCE = 1000
"""Rows that are read together."""


def targets(prepared: Prepared, dataset: str, rows: Sequence[int]) -> Iterator[dict[str, Target]]:
    """What training rows teach, now: ``{task: target}`` of each."""
    split = prepared.encoded[dataset]["train"]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        batch = split.batch(part)
        for place in range(len(part)):
            yield {task: list(batch[label_column(task)][place]) for task in split.tasks}


def taken_out(prepared: Prepared, judged: Judged, places: np.ndarray, edits: Edits) -> None:
    """Note in ``edits`` that some items have no label any more: a text of this task, a word; of IOB tags all words of
    the span that the word is in, as what would be left of it would be none."""
    task = judged.task
    doubtful: dict[str, dict[int, set[int]]] = {}
    for (dataset, row), _, found in judged.by_row(places):
        doubtful.setdefault(dataset, {})[row] = {*judged.items.words[found].tolist()}
    for dataset, words_of in doubtful.items():
        for (row, words), given in zip(words_of.items(), targets(prepared, dataset, [*words_of]), strict=True):
            target = _without(task, given[task.name], words) if kind_of(task).reads_words else []
            edits.setdefault(dataset, {}).setdefault(row, {})[task.name] = target


def _without(task: Task, target: Target, words: Set[int]) -> Target:
    """Labels of words, without those of some."""
    gone = {*words}
    if task.is_spans:
        tags = ["O" if one == MISSING else task.labels[int(one)] for one in target]
        gone |= {word for _, *ends in iob_spans(tags) if words & {*range(*ends)} for word in range(*ends)}
    return [MISSING if word in gone else int(one) for word, one in enumerate(target)]


def write_dataset(folder: Path, recipe: Recipe, prepared: Prepared, edits: Edits, name: str) -> dict[str, Any]:
    """Write the datasets with edited rows, whole or not at all, and a recipe that reads them.

    A training row of which an edit took the last label of all tasks is left out. Rows of other splits stay as they
    are: they are written, too, so that those that were held out of train remain the same.

    Args:
        folder: gets ``DATASET/SPLIT.jsonl`` with the columns that the recipe reads, and ``recipe.yaml``; what it held
            before makes way.
        name: what the recipe's ``output_dir`` ends in.

    Returns:
        ``folder``, ``recipe`` (its path), ``overrides`` (those that make the recipe read the new files), and
        ``datasets``: for each ``rows``, ``left_out`` and ``edited``.

    Raises:
        DataError: two tasks read one column, and it cannot hold what both should learn; or a dataset of numbers would
            be read otherwise by the new recipe.
        RunError: it cannot be written; what was there before is untouched.
    """
    check_numbers(recipe, prepared, [*edits])
    told: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    with written_folder(folder) as partial:
        for dataset, of_rows in edits.items():
            loaded = prepared.loaded[dataset]
            (partial / dataset).mkdir()
            files = {}
            for split, rows in loaded.splits.items():
                files[split] = str(folder / dataset / f"{split}.jsonl")
                edited = of_rows if split == "train" else {}
                counts = _write_rows(partial / dataset / f"{split}.jsonl", recipe, prepared, loaded, rows, edited)
                if split == "train":
                    told[dataset] = counts
            changes |= _changes(recipe, prepared, loaded, files)
        changed = _changed(recipe, {**changes, "output_dir": f"{recipe.output_dir.rstrip('/')}-{name}"})
        (partial / "recipe.yaml").write_text(changed.to_yaml(), encoding="utf-8")
    return {
        "folder": str(folder),
        "recipe": str(folder / "recipe.yaml"),
        "overrides": [f"{key}={as_json(value)}" for key, value in changes.items()],
        "datasets": told,
    }


def check_numbers(recipe: Recipe, prepared: Prepared, names: Sequence[str]) -> None:
    """That datasets can be written while all others are read as they were: classes that are written by name need
    ``label_names``, which would rename the numbers of others, too.

    Raises:
        DataError: a task reads classes of one of them, and numbers by ``label_map``.
    """
    for task in prepared.tasks:
        spec = recipe.tasks[task.name]
        features = {name: _cell_feature(prepared.loaded[name], column) for name, column in spec.columns().items()}
        classes = [name for name in names if isinstance(features.get(name), datasets.ClassLabel)]
        numbers = [name for name, feature in features.items() if type_of(feature).startswith(("int", "uint"))]
        if classes and numbers and spec.label_names is None and kind_of(task).label_set != "none":
            raise DataError(
                f"task `{task.name}`: the classes of `{classes[0]}` would be written by name and listed in "
                f"`label_names`, which would then rename the numbers of `{numbers[0]}`, too, instead of `label_map`. "
                f"Say `label_names: [name of 0, name of 1, ...]` in the recipe as it is, if the numbers of "
                f"`{numbers[0]}` count from 0, or save its labels as text"
            )


def _cell_feature(loaded: LoadedDataset, column: str) -> Any:
    """The type of the labels in a column, also of those in lists."""
    feature = loaded.features[column]
    return items_of(feature) or feature


def _write_rows(
    file: Path,
    recipe: Recipe,
    prepared: Prepared,
    loaded: LoadedDataset,
    rows: LoadedSplit,
    edits: Mapping[int, Mapping[str, Target]],
) -> dict[str, int]:
    """Write a split; how many rows it has now, how many are left out and how many of the others are edited."""
    counts = Counter({"rows": 0, "left_out": 0, "edited": 0})
    places = sorted(edits)
    given = dict(zip(places, targets(prepared, loaded.name, places), strict=True))
    teaches = {place: _teaches(prepared, {**given[place], **edits[place]}) for place in places}
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for place, row in enumerate(_rows(rows)):
            if not teaches.get(place, True):
                counts["left_out"] += 1
                continue
            if place in edits:
                row = _edited(recipe, prepared, loaded, row, edits[place], given[place], rows.where(place))
                counts["edited"] += 1
            counts["rows"] += 1
            lines.write(as_json({key: _plain(loaded.features[key], value) for key, value in row.items()}) + "\n")
    return dict(counts)


def _rows(split: LoadedSplit) -> Iterator[dict[str, Any]]:
    for start in range(0, len(split.rows), ROWS_AT_ONCE):
        batch = split.rows[start : start + ROWS_AT_ONCE]
        yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


def _teaches(prepared: Prepared, of_tasks: Mapping[str, Target]) -> bool:
    """Whether any task learns from a row."""
    return any(kind_of(task).num_items(of_tasks.get(task.name, [])) for task in prepared.tasks)


def _edited(
    recipe: Recipe,
    prepared: Prepared,
    loaded: LoadedDataset,
    row: dict[str, Any],
    edits: Mapping[str, Target],
    given: Mapping[str, Target],
    where: str,
) -> dict[str, Any]:
    """A row as its columns say it, with other labels; ``given``: those that it has for all tasks."""
    found, by = dict(row), dict[str, str]()
    hint = "Copy the column, so that each reads one of its own, or mend the row for both alike (--review)"
    for task in prepared.tasks:
        if task.name not in edits:
            continue
        column = recipe.tasks[task.name].columns()[loaded.name]
        reader = prepared.readers[task.name][loaded.name]
        try:
            cell = _cell(task, reader, loaded.features[column], row[column], edits[task.name])
        except KeyError as error:
            raise DataError(
                f"{where}: the column `{column}` has no value that means `{error.args[0]}` of the task `{task.name}`: "
                "other datasets have it alone. Name one, `label_map`"
            ) from error
        if by.setdefault(column, task.name) != task.name and found[column] != cell:
            raise DataError(
                f"{where}: the tasks `{by[column]}` and `{task.name}` both read the column `{column}`, and their new "
                f"labels do not go together there: {found[column]!r:.60} and {cell!r:.60}. {hint}"
            )
        found[column] = cell
    for task in prepared.tasks:
        column = recipe.tasks[task.name].columns().get(loaded.name, "")
        if task.name in edits or column not in by:
            continue
        if not _reads(task, prepared.readers[task.name][loaded.name], found[column], given[task.name]):
            raise DataError(
                f"{where}: the tasks `{by[column]}` and `{task.name}` both read the column `{column}`, and the new "
                f"label of `{by[column]}`, {found[column]!r:.60}, would change that of `{task.name}`, too. {hint}"
            )
    return found


def _reads(task: Task, reader: LabelReader, cell: Any, target: Target) -> bool:
    """Whether a task reads a target from a cell."""
    kind = kind_of(task)
    try:
        found = kind.target(reader, cell, len(cell) if isinstance(cell, list) else 0, str)
    except DataError:
        return False
    return [*found] == [*target] or not (kind.num_items(found) or kind.num_items(target))


def _cell(task: Task, reader: LabelReader, feature: Any, cell: Any, target: Target) -> Any:
    """What a label column holds that is read as a target. Words whose label stays keep how it is written.

    Raises:
        KeyError: a label has no value there.
    """
    kind = kind_of(task)

    def value(label: float) -> Any:
        found = reader.value(int(label))
        if found is None and not isinstance(items_of(feature) or feature, datasets.ClassLabel):
            raise KeyError(task.labels[int(label)])
        return task.labels[int(label)] if found is None else found  # classes are written by name

    if not kind.num_items(target):
        return None
    if kind.reads_words:
        given = cell or [None] * len(target)
        return [
            old if reader(old) == new else None if new == MISSING else value(new)
            for old, new in zip(given, target, strict=True)
        ]
    if kind.label_set == "one":
        return cell if reader(cell) == target[0] else value(target[0])
    if reader.indicators:
        dtype = items_of(feature).dtype
        of_type = bool if dtype == "bool" else float if dtype.startswith("float") else int
        return [of_type(target[reader(place)]) for place in range(reader.indicators)]
    return [value(label) for label in np.flatnonzero(target).tolist()]


def _plain(feature: Any, value: Any) -> Any:
    """A value that any reader of JSON understands: the names of classes in the place of their numbers."""
    items = items_of(feature)
    if items is not None:
        return value if value is None else [_plain(items, one) for one in value]
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return feature.names[value] if 0 <= value < len(feature.names) else None
    return value


def _changes(recipe: Recipe, prepared: Prepared, loaded: LoadedDataset, files: Mapping[str, str]) -> dict[str, Any]:
    """``{key: value}`` of what a recipe has to say otherwise; None: it says nothing any more."""
    place, spec = f"datasets.{loaded.name}", recipe.datasets[loaded.name]
    found: dict[str, Any] = {f"{place}.data_files": dict(files)}
    # All splits that there should be are there, under their usual names; none is held out again.
    for key in ("path", "name", "revision", "columns", "delimiter", "splits", "stratify"):
        if getattr(spec, key):
            found[f"{place}.{key}"] = None
    for split, key in (("validation", "validation_fraction"), ("test", "test_fraction")):
        if split not in files and getattr(spec, key):
            found[f"{place}.{key}"] = 0
    for task in prepared.tasks:
        column = recipe.tasks[task.name].columns().get(loaded.name)
        is_class = column is not None and isinstance(_cell_feature(loaded, column), datasets.ClassLabel)
        if is_class and recipe.tasks[task.name].label_names is None:  # in their order, and those that do not occur
            found[f"tasks.{task.name}.label_names"] = list(task.labels)
    return found


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    values = recipe.to_dict()
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        if value is None:
            section.pop(last)
        else:
            section[last] = value
    return Recipe.from_dict(values)
