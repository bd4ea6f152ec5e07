"""What the data holds and what is odd about it, before any training: ``nlp-mtl check``."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from nlp_mtl.analysis.relatedness import label_agreement
from nlp_mtl.data.encoded_splits import EncodedSplit, StreamedSplit, label_column
from nlp_mtl.data.items import Framing, item_lengths
from nlp_mtl.data.loading import LoadedDataset, LoadedSplit
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import MISSING, Task, iob2_break

_SHOWN = 3
"""Places that are named for each oddity; the rest is counted."""


def data_report(
    tasks: Sequence[Task],
    loaded: Mapping[str, LoadedDataset],
    encoded: Mapping[str, Mapping[str, EncodedSplit]],
    framing: Framing,
    data: StepDataset,
    *,
    beyond_labels: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything ``nlp-mtl check`` prints, as plain values.

    Args:
        beyond_labels: whether training rows without a label are learned from, which are then not odd.
        progress: show bars while rows are looked through.

    Returns:
        ``notes`` (splits carved or capped), ``splits`` (rows and lengths), ``labels`` (counts), ``agreement``
        (of tasks that label the same rows), ``sampling``, ``steps``,
        ``first_micro_batch`` and ``odd``: sentences that name dataset, split and row.
    """
    # Nobody has seen what their training rows hold.
    streamed = {task for split in data.splits if isinstance(split, StreamedSplit) for task in split.tasks}
    return {
        "notes": [note for dataset in loaded.values() for note in dataset.notes],
        "splits": [
            _split_report(name, split, rows, framing)
            for name, splits in encoded.items()
            for split, rows in splits.items()
        ],
        "labels": [
            _label_report(task, name, split, rows)
            for task in tasks
            for name, splits in encoded.items()
            for split, rows in splits.items()
            if task.name in rows.tasks
        ],
        "agreement": label_agreement(tasks, encoded),
        "sampling": _sampling_report(loaded, encoded, data),
        "steps": {
            "steps": len(data),
            "rows": data.sampler.num_rows,
            "batch_size": data.sampler.batch_size,
            "layout": "packed" if data.packed else "padded",
            "max_tokens": data.max_tokens,
            "max_length": framing.max_length,
        },
        "first_micro_batch": _micro_batch_report(tasks, data),
        "odd": [
            *_odd_steps(data),
            *_odd_labels(tasks, encoded, streamed),
            *(
                problem
                for splits in encoded.values()
                for split, rows in splits.items()
                for problem in _odd_rows(tasks, rows, framing, progress, beyond_labels and split == "train")
            ),
            *(problem for group in _related(tasks, loaded, encoded) for problem in _duplicates(group, progress)),
        ],
    }


def _split_report(dataset: str, split: str, rows: EncodedSplit, framing: Framing) -> dict[str, Any]:
    is_pair = _is_pair(rows)
    lengths = rows.lengths + framing.num_specials(is_pair=is_pair)
    percentiles = np.percentile(lengths, [50, 95, 99], method="higher").astype(int).tolist()
    return {
        "dataset": dataset,
        "split": split,
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        "length_p50": percentiles[0],
        "length_p95": percentiles[1],
        "length_p99": percentiles[2],
        "length_max": int(lengths.max()),
        "windowed_share": 0.0 if is_pair else float((rows.lengths > framing.capacity).mean()),
        "cut_words": sum(1 for _ in _cut_words(rows, framing)),
        "cut_pairs": len(_cut_pairs(rows, framing)),
    }


def _label_report(task: Task, dataset: str, split: str, rows: EncodedSplit) -> dict[str, Any]:
    labelled = rows.labelled[task.name]
    if kind_of(task).label_set == "none":
        numbers = rows.numbers(task)
        told: dict[str, Any] = {"numbers": {}}
        if len(numbers):
            measures = {"min": numbers.min(), "mean": numbers.mean(), "max": numbers.max(), "deviation": numbers.std()}
            told = {"numbers": {name: float(value) for name, value in measures.items()}}
    else:
        told = {"counts": dict(zip(task.labels, rows.label_counts(task).tolist(), strict=True))}
    return {
        "task": task.name,
        "dataset": dataset,
        "split": split,
        "labelled_rows": int((labelled > 0).sum()),
        "labelled_items": int(labelled.sum()),
        **told,
    }


def _sampling_report(
    loaded: Mapping[str, LoadedDataset], encoded: Mapping[str, Mapping[str, EncodedSplit]], data: StepDataset
) -> list[dict[str, Any]]:
    drawn_from = {id(split.source): place for place, split in enumerate(data.splits)}
    passes = data.sampler.passes()
    shares = data.sampler.drawn(data.sampler.num_rows) / data.sampler.num_rows
    report = []
    for name, dataset in loaded.items():
        train = encoded[name].get("train")
        source = dataset.stream or (train and train.source)
        if source is None:
            continue
        place = drawn_from.get(id(source))  # None: its share is 0, so it is evaluated on alone
        share = 0.0 if place is None else float(shares[place])
        over = 0.0 if place is None else float(passes[place])
        report.append(
            {
                "dataset": name,
                "rows": dataset.stream.num_rows if dataset.stream else len(train or ()),
                "share": share,
                "rows_per_step": share * data.sampler.batch_size,
                "passes": None if math.isnan(over) else over,
            }
        )
    return report


def _micro_batch_report(tasks: Sequence[Task], data: StepDataset) -> dict[str, Any]:
    items = data.items(data.sampler[0])
    lengths = item_lengths(items, data.framing)
    row_lengths = data.row_lengths(lengths)
    micro_batches = data.layout_of(0, items, lengths) or data.layout(lengths)
    first = micro_batches[0]

    def padding(batches: Sequence[np.ndarray]) -> float:
        padded = 0 if data.packed else sum(int(row_lengths[batch].max()) * len(batch) for batch in batches)
        useful = sum(int(lengths[batch].sum()) for batch in batches)
        return 1 - useful / max(padded, useful)

    labelled = {
        task.name: sum(kind_of(task).num_items(items[i].labels.get(task.name, [])) > 0 for i in first) for task in tasks
    }
    return {
        "micro_batches_in_step": len(micro_batches),
        "rows": len(first),
        "longest": int(lengths[first].max()),
        "padding": padding([first]),
        "padding_in_step": padding(micro_batches),
        "labelled_rows": labelled,
    }


def _odd_steps(data: StepDataset) -> Iterator[str]:
    rows, batch_size = int(data.sampler.sizes.sum()), data.sampler.batch_size
    if batch_size > rows and data.sampler.sizes.all():
        yield (
            f"training.batch_size ({batch_size:,}) is more than all {rows:,} rows to train on, so a step goes over "
            "some of them more than once"
        )


def _odd_labels(
    tasks: Sequence[Task], encoded: Mapping[str, Mapping[str, EncodedSplit]], streamed: Collection[str]
) -> Iterator[str]:
    """Labels that a task cannot learn. ``streamed``: tasks of which not all training rows are known."""
    for task in tasks:
        kind = kind_of(task)
        if task.name in streamed or kind.label_set == "none":
            continue
        read = [
            (split, rows, rows.label_counts(task))
            for splits in encoded.values()
            for split, rows in splits.items()
            if task.name in rows.tasks
        ]
        for place, label in enumerate(task.labels):
            if any(counts[place] for split, _, counts in read if split == "train"):
                continue
            elsewhere = [(split, rows) for split, rows, counts in read if counts[place]]
            if not elsewhere:
                yield f"task `{task.name}`: the label `{label}` never occurs"
            for split, rows in elsewhere:
                targets = rows.rows[label_column(task.name)]
                first = next(row for row, target in enumerate(targets) if place in kind.labels_of(target))
                yield (
                    f"task `{task.name}`: the label `{label}` occurs in {split} but never in train; "
                    f"first in {rows.source.where(first)}"
                )


def _odd_rows(
    tasks: Sequence[Task], rows: EncodedSplit, framing: Framing, progress: bool, beyond_labels: bool
) -> Iterator[str]:
    empty = np.flatnonzero(rows.lengths == 0).tolist()
    yield from _places(empty, rows, "no word in it")
    yield from _places(list(_cut_words(rows, framing)), rows, "a word longer than a window; only its start is read")
    cut = f"a pair of more than {framing.max_length} tokens; of its longer text only the start is read"
    yield from _places(_cut_pairs(rows, framing), rows, cut)
    for task in tasks:
        if task.is_spans and task.name in rows.tasks:
            broken = []
            title = f"Checking {task.name} in {rows.source.dataset}"
            for row, ids in enumerate(_shown(rows.rows[label_column(task.name)], title, progress)):
                tags = [task.labels[i] if i != MISSING else "O" for i in ids]
                place = iob2_break(tags)
                if place is not None:
                    broken.append((row, f"{tags[place]} at word {place} continues no span"))
            for row, what in broken[:_SHOWN]:
                yield f"task `{task.name}`: invalid IOB2 in {rows.source.where(row)}: {what}"
            if len(broken) > _SHOWN:
                yield f"task `{task.name}`: invalid IOB2 in {len(broken) - _SHOWN} more rows of that split"
    if beyond_labels:
        return
    labelled = sum((found > 0).astype(int) for found in rows.labelled.values())
    yield from _places(np.flatnonzero(labelled == 0).tolist(), rows, "no label of any task")


def _cut_words(rows: EncodedSplit, framing: Framing) -> Iterator[int]:
    """Rows with a word of more pieces than a window holds."""
    if _is_pair(rows):
        return
    long = np.flatnonzero(rows.lengths > framing.capacity)
    for row, starts in zip(long.tolist(), rows.rows.select(long)["starts"], strict=True):
        if max(np.diff([*starts, rows.lengths[row]])) > framing.capacity:
            yield row


def _is_pair(rows: EncodedSplit) -> bool:
    return "second" in rows.rows.column_names


def _cut_pairs(rows: EncodedSplit, framing: Framing) -> list[int]:
    """Rows of two texts that do not fit together."""
    return np.flatnonzero(rows.lengths > framing.pair_capacity).tolist() if _is_pair(rows) else []


def _places(found: Sequence[int], rows: EncodedSplit, what: str) -> Iterator[str]:
    for row in found[:_SHOWN]:
        yield f"{rows.source.where(row)}: {what}"
    if len(found) > _SHOWN:
        yield f"{rows.source.title}: {len(found) - _SHOWN} more rows like that ({what})"


def _related(
    tasks: Sequence[Task],
    loaded: Mapping[str, LoadedDataset],
    encoded: Mapping[str, Mapping[str, EncodedSplit]],
) -> list[list[LoadedDataset]]:
    """The datasets in groups: those of one task, directly or by another task, are together."""
    groups: list[set[str]] = [{name} for name in loaded]
    for task in tasks:
        read = {name for name, splits in encoded.items() if any(task.name in s.tasks for s in splits.values())}
        apart = [group for group in groups if not group & read]
        groups = [*apart, set().union(*(group for group in groups if group & read))]
    return [[dataset for name, dataset in loaded.items() if name in group] for group in groups if group]


def _duplicates(group: Sequence[LoadedDataset], progress: bool) -> Iterator[str]:
    """Texts that stand in two splits, so that a score is partly one of memory; and repeats inside one."""
    first: dict[int, tuple[str, LoadedSplit, int]] = {}
    found: dict[tuple[str, str, bool], list[str]] = {}
    for dataset in group:
        for split, source in dataset.splits.items():
            title = f"Looking for repeats in {dataset.name} {split}"
            columns = [source.rows[column] for column in dataset.text_columns]
            for row, texts in enumerate(_shown(zip(*columns, strict=True), title, progress)):
                words = texts[0]
                text = " ".join(word or "" for word in words) if isinstance(words, list) else words
                if not text:
                    continue
                known, other, place = first.setdefault(hash((text, *texts[1:])), (split, source, row))
                if other is source and place == row:
                    continue
                sentence = f"the same text in {other.where(place)} and in {source.where(row)}"
                found.setdefault((other.title, source.title, known == split), []).append(sentence)
    # What leaks into a score comes first.
    for (left, right, _), sentences in sorted(found.items(), key=lambda pair: pair[0][2]):
        yield from sentences[:_SHOWN]
        if len(sentences) > _SHOWN:
            rest = f"{len(sentences) - _SHOWN} more"
            yield f"{right}: {rest} " + ("repeated texts" if left == right else f"texts that are also in {left}")


def _shown(rows: Any, title: str, progress: bool) -> Any:
    """The rows, with a progress bar."""
    return tqdm(rows, desc=title, disable=not progress, leave=False, delay=1)


def label_summary(counts: Mapping[str, int], limit: int = 8) -> str:
    """Label counts in one line, most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{label} {count:,}" for label, count in ordered[:limit]) + (
        f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    )


def number_summary(numbers: Mapping[str, float]) -> str:
    """The measures of numbers in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
