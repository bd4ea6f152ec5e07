"""Labels as datasets give them (strings, class labels, numbers) to label sets and ids."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from nlp_mtl.data.columns import holds_text, is_null, items_of, kind_of
from nlp_mtl.data.loading import LoadedDataset, LoadedSplit
from nlp_mtl.errors import DataError, did_you_mean, listed
from nlp_mtl.task_types import KINDS
from nlp_mtl.task_types.regression import OUTPUT
from nlp_mtl.tasks import MISSING, Metric, Task, TaskType, are_iob, is_iob

logger = logging.getLogger(__name__)
_NUMBER = re.compile(r"-?\d+")


class LabelReader:
    """Turns the values of one label column into ids of a task's label set."""

    def __init__(
        self,
        task: str,
        labels: Sequence[str],
        names: Mapping[int, str] | None,
        label_map: Mapping[str, str],
        indicators: int = 0,
    ) -> None:
        """
        Args:
            names: what numbers mean; None: the column holds names.
            indicators: a row's list has so many 0 and 1, one for each of ``names``; 0: it has their numbers.
        """
        self.task = task
        self.indicators = indicators
        self.labels = tuple(labels)
        ids = {label: place for place, label in enumerate(labels)}
        self._ids: dict[Any, int] = {None: MISSING}
        if names is None:
            self._ids |= ids
            self._ids |= {given: ids[wanted] for given, wanted in label_map.items() if wanted in ids}
        else:
            # -1 is what the Hub's test splits without labels hold, unless it has a name.
            wanted = {n: label_map.get(name, name) for n, name in names.items()}
            self._ids |= {-1: MISSING, MISSING: MISSING}
            self._ids |= {n: ids[label] for n, label in wanted.items() if label in ids}

    def __call__(self, value: Any) -> int:
        """The id of one value; None: no label.

        Raises:
            KeyError: it is not in the label set.
        """
        try:
            return self._ids[value]
        except TypeError as error:  # a list among the later rows of a stream, of which only the first ones have a type
            raise KeyError(str(value)) from error

    def value(self, label: int) -> Any:
        """A value that is read as this id: the label's name, if it is; None: there is none."""
        name = self.labels[label]
        if self._ids.get(name) == label:
            return name
        return next((value for value, one in self._ids.items() if one == label), None)

    def key(self) -> list[str]:
        """What it reads as what, for cache keys."""
        return [*sorted(map(str, self._ids.items())), *["indicators"] * bool(self.indicators)]

    def unknown(self, value: Any, where: str) -> DataError:
        """The error for a value that is not in the label set."""
        if isinstance(value, str):
            hint = did_you_mean(value, self.labels)
        elif isinstance(value, list | dict):
            hint = " A label is text or a number."
        else:
            hint = f' `label_names` names numbers from 0 on, `label_map: {{"{value}": name of {value}, ...}}` any'
        return DataError(
            f"task `{self.task}`: unknown label {value!r:.60} in {where}; the label set is {listed(self.labels)}.{hint}"
        )


def resolve_task(
    name: str,
    type: TaskType,
    columns: Mapping[str, str],
    loaded: Mapping[str, LoadedDataset],
    *,
    label_names: Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
    metric: Metric | None = None,
    loss_weight: float = 1.0,
    pairs: bool = False,
    trained_labels: Sequence[str] | None = None,
    goes_on: bool = False,
) -> tuple[Task, dict[str, LabelReader]]:
    """A task with its label set, found in the data, and a label reader for each of its datasets.

    The label set is ``label_names``; else the names of class labels in their order; else the strings that
    occur, sorted, ``O`` first. Several datasets: their label sets merged.

    Args:
        columns: ``{dataset: label column}``.
        label_map: other names for labels; see the recipe.
        pairs: whether the datasets hold pairs of texts.
        trained_labels: the label set of a trained model, which then holds whatever the data says.
        goes_on: it goes on learning, so the data and ``label_names`` may say nothing else.

    Raises:
        DataError: labels are not what the task needs.
    """
    kind = KINDS[type]
    if kind.label_set == "none":
        for dataset, column in columns.items():
            _check_numbers(name, type, loaded[dataset], column)
        task = Task(name, type, (OUTPUT,), metric or kind.default_metric(()), loss_weight, pairs)
        return task, {dataset: LabelReader(name, (), None, {}) for dataset in columns}
    label_map = dict(label_map or {})
    names_of: dict[str, dict[int, str] | None] = {}
    indicators: dict[str, int] = {}
    found: dict[str, list[str]] = {}
    occurring: set[str] = set()
    mapped: set[str] = set()
    for dataset, column in columns.items():
        names = _names_of(name, type, loaded[dataset], column, label_names, label_map)
        are_indicators = (
            names is not None and kind.label_set == "many" and _are_indicators(loaded[dataset], column, label_names)
        )
        indicators[dataset] = len(label_names or ()) if are_indicators else 0
        given = set((names or {}).values()) if indicators[dataset] else _occurring(loaded[dataset], column, names)
        if loaded[dataset].stream is not None and trained_labels is None:
            if why := names_needed(loaded[dataset], column, label_names):
                raise DataError(f"task `{name}`: {why}: say them, `label_names: [...]`")
            # Nobody has seen its rows: they may hold any label.
            given |= set(label_map) | set(label_names or ()) if names is None else set(names.values())
        values = {label_map.get(label, label) for label in given}
        occurring |= values
        mapped |= given | set((names or {}).values())
        names_of[dataset] = names
        found[dataset] = sorted(values) if names is None else [label_map.get(name, name) for name in names.values()]
    for label in [label for label in label_map if label not in mapped]:
        logger.warning(
            "Task `%s`: label_map renames `%s`, which does not occur.%s", name, label, did_you_mean(label, mapped)
        )
    if trained_labels is not None:
        labels = list(trained_labels)
        if goes_on:
            _check_same(name, labels, {label_map.get(one, one) for one in label_names or labels}, occurring)
    elif label_names is not None:
        labels = list(dict.fromkeys(label_map.get(label, label) for label in label_names))
    else:
        labels = list(dict.fromkeys(label for labels in found.values() for label in labels))
        if not any(names_of.values()):
            labels = sorted(labels, key=lambda label: (label != "O", label))
    for old, new in label_map.items():
        if old in mapped and new not in labels:
            raise DataError(
                f"task `{name}`: label_map renames `{old}` to `{new}`, which is not in the label set {listed(labels)}."
                + did_you_mean(new, labels)
            )
    _check_merge(name, found)
    if trained_labels is None and len(occurring) < (1 if kind.label_set == "many" else 2):
        place = listed(f"{dataset}.{column}" for dataset, column in columns.items())
        what = f"only the label {listed(occurring)}" if occurring else "no label at all"
        raise DataError(f"task `{name}`: {place} holds {what}; there is nothing to tell apart")
    odd = [label for label in labels if not is_iob(label)]
    if metric == "span_f1" and not are_iob(labels):
        place = _where_label(odd[0], columns, loaded, names_of, label_map) if odd else "there is no label but `O`"
        raise DataError(f"task `{name}`: span_f1 needs IOB tags (O, B-X, I-X), but {place}")
    if kind.reads_words and metric is None and odd and len(odd) < len([*filter(is_iob, labels)]):
        place = _where_label(odd[0], columns, loaded, names_of, label_map)
        raise DataError(
            f"task `{name}`: most labels are IOB tags (O, B-X, I-X), but {place}. Mend it (`label_map` "
            "renames labels), or say `metric: accuracy`"
        )
    task = Task(name, type, tuple(labels), metric or kind.default_metric(labels), loss_weight, pairs)
    readers = {d: LabelReader(name, labels, names_of[d], label_map, indicators[d]) for d in columns}
    return task, readers


def _check_same(task: str, labels: Sequence[str], said: set[str], occurring: set[str]) -> None:
    """That a task which a trained model has can go on learning."""
    told = f"task `{task}`: the trained model's labels are {listed(labels)}, but "
    end = "Rename with `label_map: {given: wanted}`, or give the task another name, so that it is a new one"
    if other := sorted(occurring - {*labels}):
        raise DataError(f"{told}the data hold {listed(other)}.{did_you_mean(other[0], labels)} {end}")
    if said != {*labels}:
        raise DataError(f"{told}`label_names` says {listed(sorted(said))}. {end}")


def names_needed(loaded: LoadedDataset, column: str, label_names: Sequence[str] | None) -> str:
    """Why a recipe has to say the labels of a column; empty: it need not."""
    if loaded.stream is None or label_names is not None or not holds_text(loaded.features[column]):
        return ""
    return f"`{loaded.name}` is streamed, so the labels in `{column}` cannot be collected before training"


def _names_of(
    task: str,
    type: TaskType,
    loaded: LoadedDataset,
    column: str,
    label_names: Sequence[str] | None,
    label_map: Mapping[str, str],
) -> dict[int, str] | None:
    """The names behind a label column's numbers. None: it holds strings."""
    place = f"task `{task}`: the label column `{column}` of dataset `{loaded.name}`"
    feature = loaded.features[column]
    if is_null(feature):
        return None
    items = items_of(feature)
    is_list = items is not None
    if is_list != KINDS[type].is_list:
        wanted, found = ("a list of labels a row", "one value a row") if not is_list else ("one label a row", "lists")
        raise DataError(f"{place} holds {found}, but {type} needs {wanted}")
    inner = items if is_list else feature
    if isinstance(inner, datasets.ClassLabel):
        # Classes have names already: label_names may order them, it never renames them by place.
        unknown = [n for n in inner.names if label_names is not None and label_map.get(n, n) not in label_names]
        if unknown:
            raise DataError(
                f"{place} has the classes {listed(inner.names)}, but label_names does not list {listed(unknown)}; "
                "rename with `label_map: {given: wanted}`"
            )
        return dict(enumerate(inner.names))
    if isinstance(inner, datasets.Value) and inner.dtype.startswith(("int", "uint")):
        if label_names is not None:
            return dict(enumerate(label_names))
        numbers = {int(given): given for given in label_map if _NUMBER.fullmatch(given)}
        if not numbers:
            raise DataError(
                f"{place} holds numbers; say what they mean: `label_names: [name of 0, name of 1, ...]`, or where they "
                'do not count from 0, `label_map: {"1": name of 1, ...}`'
            )
        return numbers
    if isinstance(inner, datasets.Value) and KINDS[type].label_set == "many" and _may_be_indicator(inner):
        if label_names is None:
            raise DataError(f"{place} holds {kind_of(feature)}; say which labels they are for: `label_names: [...]`")
        if not _are_indicators(loaded, column, label_names):
            raise DataError(f"{place} holds {kind_of(feature)}; expected a 0 or 1 for each of {listed(label_names)}")
        return dict(enumerate(label_names))
    if isinstance(inner, datasets.Value) and inner.dtype == "bool":
        raise DataError(f"{place} holds booleans; save them as text or as 0 and 1 with `label_names`")
    if not (isinstance(inner, datasets.Value) and inner.dtype in ("string", "large_string", "null")):
        raise DataError(f"{place} holds {kind_of(inner)}; expected text or class numbers")
    return None


def _may_be_indicator(feature: datasets.Value) -> bool:
    """Whether a type that cannot be an id may be a 0 or 1."""
    return feature.dtype == "bool" or feature.dtype.startswith("float")


def _are_indicators(loaded: LoadedDataset, column: str, label_names: Sequence[str] | None) -> bool:
    """Whether lists of numbers have a 0 or 1 for each label: all are so long, and hold nothing else but "no label".

    Lists of ids cannot be taken for such: as many ids below 2 as there are labels would say all labels of each row.
    """
    if label_names is None:
        return False
    parts = [part for split in loaded.splits.values() for part in split.values(column)]
    parts += loaded.stream.head.data.column(column).chunks if loaded.stream is not None else []
    sizes: set[Any] = set()
    values: set[Any] = set()
    for part in parts:
        sizes.update(pc.unique(pc.list_value_length(part)).to_pylist())
        values.update(pc.unique(pc.list_flatten(part)).to_pylist())
    return sizes - {None} == {len(label_names)} and values <= {0, 1, -1, MISSING}


def _check_numbers(task: str, type: TaskType, loaded: LoadedDataset, column: str) -> None:
    feature = loaded.features[column]
    is_number = type_of(feature).startswith(("int", "uint", "float"))
    if not is_number and not is_null(feature):
        raise DataError(
            f"task `{task}`: the label column `{column}` of dataset `{loaded.name}` holds {kind_of(feature)}, but "
            f"{type} needs numbers"
        )


def type_of(feature: Any) -> str:
    """The type of a column of single values, as Arrow calls it; empty: it holds something else."""
    return str(feature.dtype) if type(feature) is datasets.Value else ""


def _occurring(loaded: LoadedDataset, column: str, names: Mapping[int, str] | None) -> set[str]:
    """The labels that a column holds somewhere, as they are given."""
    values = {value for split in loaded.splits.values() for value in distinct_values(split, column)} - {""}
    if names is not None:  # a number without a name counts here; whoever encodes the rows refuses it
        return {names.get(n, str(n)) for n in values if n in names or n not in (-1, MISSING)}
    return values


def distinct_values(split: LoadedSplit, column: str) -> set[Any]:
    """The values that a label column holds; nulls left out."""
    found: set[Any] = set()
    for values in split.values(column):
        while isinstance(values.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            values = pc.list_flatten(values)
        found.update(pc.unique(values).to_pylist())
    return found - {None}


def _check_merge(task: str, found: Mapping[str, Sequence[str]]) -> None:
    """Datasets of one task that share no label, directly or by others, are a mistake, not parts of a label set."""
    first, *rest = found
    known = set(found[first])
    while rest:
        joining = [
            other for other in rest if (known & set(found[other])) - {"O"} or len(known | set(found[other])) <= 1
        ]
        if not joining:
            raise DataError(
                f"task `{task}`: datasets `{first}` and `{rest[0]}` share no label: {listed(sorted(known))} against "
                f"{listed(found[rest[0]])}. Rename with `label_map: {{given: wanted}}`, or make them two tasks"
            )
        known = known.union(*(found[other] for other in joining))
        rest = [other for other in rest if other not in joining]


def _where_label(
    label: str,
    columns: Mapping[str, str],
    loaded: Mapping[str, LoadedDataset],
    names_of: Mapping[str, Mapping[int, str] | None],
    label_map: Mapping[str, str],
) -> str:
    """Where a label of a token task first occurs."""
    for dataset, column in columns.items():
        names = names_of[dataset]
        given = {label, *(other for other, wanted in label_map.items() if wanted == label)}
        wanted = given if names is None else {n for n, name in names.items() if name in given}
        for split in loaded[dataset].splits.values():
            for row, values in enumerate(split.rows[column]):
                if not wanted.isdisjoint(values or ()):
                    return f"found {label!r} in {split.where(row)}"
    return f"the label set holds {label!r}"
