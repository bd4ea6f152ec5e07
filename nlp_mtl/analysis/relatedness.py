"""How much the labels of two tasks say of each other, where both label the same rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task


def label_agreement(tasks: Sequence[Task], encoded: Mapping[str, Mapping[str, EncodedSplit]]) -> list[dict[str, Any]]:
    """Each two tasks that label the same training rows, with how their labels agree.

    Only tasks with one label an item are compared.
    An item is a word where one of the two labels words (a text's label then stands for each of its words), else a text.

    Returns:
        ``tasks``, ``items`` that both label, and a ``measure`` with its ``value``: ``equal``, the share of items with
        equal labels, where both tasks have the same labels; else ``nmi``, the normalised mutual information of the
        labels: 0 where those of one say nothing of the other's, 1 where they settle them.
    """
    found = []
    for one, other in combinations([task for task in tasks if kind_of(task).label_set == "one"], 2):
        counts = np.zeros((len(one.labels), len(other.labels)), dtype=np.int64)
        for splits in encoded.values():
            rows = splits.get("train")
            if isinstance(rows, EncodedSplit) and one.name in rows.tasks and other.name in rows.tasks:
                counts += rows.joint_counts(one, other)
        items = int(counts.sum())
        if not items:
            continue
        if set(one.labels) == set(other.labels):
            pairs = [(place, other.labels.index(label)) for place, label in enumerate(one.labels)]
            measure, value = "equal", sum(int(counts[pair]) for pair in pairs) / items
        else:
            measure, value = "nmi", normalised_mutual_information(counts)
        found.append({"tasks": [one.name, other.name], "items": items, "measure": measure, "value": value})
    return found


def normalised_mutual_information(counts: NDArray[np.int64]) -> float:
    """Mutual information by the mean of both entropies; 0 where a task has one label only.

    Args:
        counts: [labels of one task, labels of another] how many items have each two labels.
    """
    joint = counts / counts.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    information = _entropy(rows) + _entropy(columns) - _entropy(joint.ravel())
    mean = (_entropy(rows) + _entropy(columns)) / 2
    return float(np.clip(information / mean, 0, 1)) if mean > 0 else 0.0


def _entropy(shares: NDArray[np.float64]) -> float:
    there = shares[shares > 0]
    return float(-(there * np.log(there)).sum())


def mean_affinities(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The means over a run of what its ``metrics.jsonl`` tells: ``{one: {other: what a step for one does for it}}``."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        for one, others in line.get("affinities", {}).items():
            for other, value in others.items():
                found.setdefault(one, {}).setdefault(other, []).append(value)
    return {one: {other: float(np.mean(values)) for other, values in others.items()} for one, others in found.items()}


def propose_groups(affinities: Mapping[str, Mapping[str, float]], num_groups: int) -> list[tuple[str, ...]]:
    """Which tasks to train together: the partition in which tasks gain most from the others of their group.

    After Fifty et al. 2021 (arXiv 2109.04617), who let a task be in several groups; here it is in exactly one. A task
    gains the mean affinity of the others for it; alone, nothing. All partitions are tried: for up to ten tasks or so.

    Args:
        affinities: as :func:`mean_affinities` has them.
        num_groups: how many models there may be, at most.

    Returns:
        the groups.
    """

    def gain(group: tuple[str, ...]) -> float:
        found = [[affinities[one].get(other, 0.0) for one in group if one != other] for other in group]
        return float(sum(np.mean(values) for values in found if values))

    partitions = (one for one in _partitions(list(affinities)) if len(one) <= num_groups)
    return max(partitions, key=lambda groups: sum(gain(group) for group in groups), default=[])


def _partitions(names: Sequence[str]) -> Iterator[list[tuple[str, ...]]]:
    if not names:
        yield []
        return
    first, *rest = names
    for groups in _partitions(rest):
        yield [(first,), *groups]
        for place, group in enumerate(groups):
            yield [*groups[:place], (first, *group), *groups[place + 1 :]]
