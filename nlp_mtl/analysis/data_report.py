"""What the data holds and what is odd about it, before any training: ``nlp-mtl check``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nlp_mtl.data.batches import Framing, StepDataset, item_lengths
from nlp_mtl.data.encoding import EncodedSplit, label_column
from nlp_mtl.data.labels import MISSING, count_ids
from nlp_mtl.data.layout import layout
from nlp_mtl.data.loading import LoadedDataset
from nlp_mtl.tasks import Task, iob2_break

_SHOWN = 3
"""Places that are named for each oddity; the rest is counted."""


def data_report(
    tasks: Sequence[Task],
    loaded: Mapping[str, LoadedDataset],
    encoded: Mapping[str, Mapping[str, EncodedSplit]],
    framing: Framing,
    data: StepDataset,
) -> dict[str, Any]:
    """Everything ``nlp-mtl check`` prints, as plain values.

    Returns:
        ``notes`` (splits carved or capped), ``splits`` (rows and lengths), ``labels`` (counts), ``sampling``,
        ``steps``, ``first_micro_batch`` and ``odd``: sentences that name dataset, split and row.
    """
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
            if task.name in rows.labelled
        ],
        "sampling": _sampling_report(encoded, data),
        "steps": {
            "steps": len(data),
            "rows": data.sampler.num_rows,
            "batch_size": data.sampler.batch_size,
            "max_tokens": data.max_tokens,
            "max_length": framing.max_length,
        },
        "first_micro_batch": _micro_batch_report(tasks, data),
        "odd": [
            *_odd_labels(tasks, encoded),
            *(
                problem
                for splits in encoded.values()
                for rows in splits.values()
                for problem in _odd_rows(tasks, rows, framing)
            ),
            *(problem for dataset in loaded.values() for problem in _duplicates(dataset)),
        ],
    }


def _split_report(dataset: str, split: str, rows: EncodedSplit, framing: Framing) -> dict[str, Any]:
    lengths = rows.lengths + len(framing.prefix) + len(framing.suffix)
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
        "windowed_share": float((rows.lengths > framing.capacity).mean()),
        "cut_words": sum(1 for _ in _cut_words(rows, framing)),
    }


def _label_report(task: Task, dataset: str, split: str, rows: EncodedSplit) -> dict[str, Any]:
    counts = count_ids(_label_ids(rows, task), len(task.labels))
    labelled = rows.labelled[task.name]
    return {
        "task": task.name,
        "dataset": dataset,
        "split": split,
        "labelled_rows": int((labelled > 0).sum()),
        "labelled_items": int(labelled.sum()),
        "counts": dict(zip(task.labels, counts.tolist(), strict=True)),
    }


def _label_ids(rows: EncodedSplit, task: Task) -> np.ndarray:
    """[items] All label ids of a split."""
    parts = [np.zeros(0, dtype=np.int64)]
    column = label_column(task.name)
    for batch in rows.rows.select_columns([column]).with_format("arrow").iter(10_000):
        parts.append(batch.column(0).combine_chunks().flatten().to_numpy().astype(np.int64))
    return np.concatenate(parts)


def _sampling_report(encoded: Mapping[str, Mapping[str, EncodedSplit]], data: StepDataset) -> list[dict[str, Any]]:
    names = [name for name, splits in encoded.items() if "train" in splits]
    passes = data.sampler.passes()
    return [
        {
            "dataset": name,
            "rows": int(data.sampler.sizes[place]),
            "probability": float(data.sampler.rates[place]),
            "rows_per_step": float(data.sampler.rates[place] * data.sampler.batch_size),
            "passes": float(passes[place]),
        }
        for place, name in enumerate(names)
    ]


def _micro_batch_report(tasks: Sequence[Task], data: StepDataset) -> dict[str, Any]:
    items = data.items(data.sampler[0])
    lengths = item_lengths(items, data.framing)
    micro_batches = layout(lengths, 1, data.max_tokens, data.micro_batch_cost)[0]
    first = micro_batches[0]
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in micro_batches)
    labelled = {
        task.name: sum(any(label != MISSING for label in items[i].labels.get(task.name, ())) for i in first)
        for task in tasks
    }
    return {
        "micro_batches_in_step": len(micro_batches),
        "rows": len(first),
        "longest": int(lengths[first].max()),
        "padding": 1 - float(lengths[first].sum()) / float(lengths[first].max() * len(first)),
        "padding_in_step": 1 - float(lengths.sum()) / padded,
        "labelled_rows": labelled,
    }


def _odd_labels(tasks: Sequence[Task], encoded: Mapping[str, Mapping[str, EncodedSplit]]) -> Iterator[str]:
    """Labels that a task cannot learn, or barely."""
    for task in tasks:
        counts: dict[str, np.ndarray] = {}
        for splits in encoded.values():
            for split, rows in splits.items():
                if task.name in rows.labelled:
                    found = count_ids(_label_ids(rows, task), len(task.labels))
                    counts[split] = counts.get(split, 0) + found
        train = counts.get("train", np.zeros(len(task.labels)))
        for place, label in enumerate(task.labels):
            elsewhere = [split for split, found in counts.items() if split != "train" and found[place]]
            if not train[place] and elsewhere:
                yield f"task `{task.name}`: the label `{label}` occurs in {' and '.join(elsewhere)} but never in train"
            elif not train[place]:
                yield f"task `{task.name}`: the label `{label}` never occurs"


def _odd_rows(tasks: Sequence[Task], rows: EncodedSplit, framing: Framing) -> Iterator[str]:
    empty = np.flatnonzero(rows.lengths == 0).tolist()
    yield from _places(empty, rows, "no word in it")
    yield from _places(list(_cut_words(rows, framing)), rows, "a word longer than a window; only its start is read")
    for task in tasks:
        if task.is_spans and task.name in rows.labelled:
            broken = []
            for row, ids in enumerate(rows.rows[label_column(task.name)]):
                tags = [task.labels[i] if i != MISSING else "O" for i in ids]
                place = iob2_break(tags)
                if place is not None:
                    broken.append((row, f"{tags[place]} at word {place} continues no span"))
            for row, what in broken[:_SHOWN]:
                yield f"task `{task.name}`: invalid IOB2 in {rows.source.where(row)}: {what}"
            if len(broken) > _SHOWN:
                yield f"task `{task.name}`: invalid IOB2 in {len(broken) - _SHOWN} more rows of that split"
    labelled = sum((found > 0).astype(int) for found in rows.labelled.values())
    yield from _places(np.flatnonzero(labelled == 0).tolist(), rows, "no label of any task")


def _cut_words(rows: EncodedSplit, framing: Framing) -> Iterator[int]:
    """Rows with a word of more pieces than a window holds."""
    long = np.flatnonzero(rows.lengths > framing.capacity)
    for row, starts in zip(long.tolist(), rows.rows.select(long)["starts"], strict=True):
        if max(np.diff([*starts, rows.lengths[row]])) > framing.capacity:
            yield row


def _places(found: Sequence[int], rows: EncodedSplit, what: str) -> Iterator[str]:
    for row in found[:_SHOWN]:
        yield f"{rows.source.where(row)}: {what}"
    if len(found) > _SHOWN:
        place = f"dataset `{rows.source.dataset}`, split {rows.source.source}"
        yield f"{place}: {len(found) - _SHOWN} more rows like that ({what})"


def _duplicates(dataset: LoadedDataset) -> Iterator[str]:
    """Texts that stand in two splits, so that a score is partly one of memory; and repeats inside one."""
    first: dict[int, tuple[str, int]] = {}
    across: dict[tuple[str, str], list[tuple[int, int]]] = {}
    inside: dict[str, int] = {}
    for split, source in dataset.splits.items():
        for row, text in enumerate(source.rows[dataset.column]):
            key = hash(tuple(text) if isinstance(text, list) else text)
            if text and key not in first:
                first[key] = (split, row)
            elif text and first[key][0] == split:
                inside[split] = inside.get(split, 0) + 1
            elif text:
                across.setdefault((first[key][0], split), []).append((first[key][1], row))
    for (left, right), pairs in across.items():
        for a, b in pairs[:_SHOWN]:
            yield f"the same text in {dataset.splits[left].where(a)} and in {dataset.splits[right].where(b)}"
        if len(pairs) > _SHOWN:
            yield f"dataset `{dataset.name}`: {len(pairs) - _SHOWN} more texts of {right} stand in {left}"
    for split, count in inside.items():
        yield f"dataset `{dataset.name}`: {count} repeated texts inside {split}"


def label_summary(counts: Mapping[str, int], limit: int = 8) -> str:
    """Label counts in one line, most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{label} {count:,}" for label, count in ordered[:limit]) + (
        f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    )
