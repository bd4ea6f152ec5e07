"""Which labels are likely errors, what should stand there, and what errors have in common."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from nlp_mtl.analysis.label_quality import Dynamics, estimated_errors, is_answered
from nlp_mtl.data.labelled_items import LabelledItems
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.chains import best_sequence, iob2_transitions
from nlp_mtl.task_types.multi_label_classification import THRESHOLD
from nlp_mtl.tasks import Task, iob_spans

Ranking = Literal["quality", "confidence", "both"]

RANKINGS: tuple[Ranking, ...] = ("quality", "confidence", "both")

_FORBIDDEN = 1e6
"""What it costs that IOB2 does not allow a label where it stands: more than any text can gain. Not infinite, as given
tags that stay may break its rules themselves."""


class Judged(NamedTuple):
    """The labelled training items of a task over all its datasets, and what models say of their labels."""

    task: Task
    names: Sequence[str]
    """The datasets."""
    datasets: np.ndarray
    """[items] Places in ``names``; they ascend."""
    items: LabelledItems
    probabilities: np.ndarray
    """[items, labels] By a model that did not see the item."""
    quality: np.ndarray
    """[items] See :func:`nlp_mtl.analysis.label_quality.quality`."""
    dynamics: Dynamics

    def scores(self, by: Ranking) -> np.ndarray:
        """[items] What errors are ranked by: the lowest are the likeliest. ``both``: the mean of the two."""
        if by == "both":
            return np.asarray((self.quality + self.dynamics.confidence) / 2)
        scores: np.ndarray = self.quality if by == "quality" else self.dynamics.confidence
        return scores

    def estimated(self) -> int:
        """How many labels cleanlab takes for errors."""
        return estimated_errors(self.task, self.items.given, self.probabilities)

    def share(self, share: float) -> int:
        """How many items a share of all is, at least one."""
        return max(1, round(share * len(self.items)))

    def worst(self, by: Ranking, count: int) -> np.ndarray:
        """The places of the ``count`` likeliest errors, the likeliest first; of equal ones the first."""
        order: np.ndarray = np.argsort(self.scores(by), kind="stable")
        return order[:count]

    def row_of(self, place: int) -> tuple[str, int]:
        """An item's dataset, and the place of its row there."""
        return self.names[self.datasets[place]], int(self.items.rows[place])

    def row_starts(self) -> np.ndarray:
        """The places of the first items of all rows."""
        same = np.stack([self.datasets, self.items.rows])
        return np.asarray(np.flatnonzero(np.diff(same, axis=1, prepend=-1).any(axis=0)))

    def by_row(self, places: np.ndarray) -> Iterator[tuple[tuple[str, int], np.ndarray, np.ndarray]]:
        """Of the rows of some items, in order: dataset and row, all items of the row, and those of them asked for."""
        starts = self.row_starts()
        ends = np.append(starts[1:], len(self.items))
        places = np.sort(places)
        rows = np.searchsorted(starts, places, side="right") - 1
        for row in np.unique(rows):
            yield self.row_of(starts[row]), np.arange(starts[row], ends[row]), places[rows == row]


def proposed(judged: Judged, listed: np.ndarray) -> np.ndarray:
    """What should stand in the place of listed labels: ids [listed], or 0 and 1 [listed, labels].

    The likeliest label; of IOB2 tags the likeliest sequence of a row that IOB2 allows and in which all labels that are
    not listed stay.
    """
    task, shares = judged.task, judged.probabilities
    if kind_of(task).label_set == "many":
        return np.asarray(shares[listed] > THRESHOLD, dtype=np.int32)
    found = shares.argmax(axis=1)
    if task.is_spans:
        transitions = np.maximum(iob2_transitions(task.labels), -_FORBIDDEN)
        for _, row, doubtful in judged.by_row(listed):
            logits = np.log(np.maximum(shares[row], 1e-30))
            stays = ~np.isin(row, doubtful)
            logits[stays] = -np.inf
            logits[stays, judged.items.given[row[stays]]] = 0
            # Words without a label part a row: nothing is known of what stands there.
            parts = np.split(np.arange(len(row)), 1 + np.flatnonzero(np.diff(judged.items.words[row]) != 1))
            found[row] = np.concatenate([best_sequence(logits[part], transitions) for part in parts])
    return np.asarray(found[listed])


def named(task: Task, label: Any) -> Any:
    """A label, or the set of labels that 0 and 1 say, by name."""
    if kind_of(task).label_set == "many":
        return [task.labels[place] for place in np.flatnonzero(label)]
    return task.labels[int(label)]


def entries(
    judged: Judged, listed: np.ndarray, proposals: np.ndarray, shown: Mapping[tuple[str, int], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A line of ``label_errors.jsonl`` for each listed item.

    Args:
        shown: ``{(dataset, place of a row): what is shown of the row}``, its number and its words or text.
    """
    task, found = judged.task, []
    for place, proposal in zip(listed.tolist(), proposals, strict=True):
        dataset, row = judged.row_of(place)
        given = judged.items.given[place]
        entry = {"dataset": dataset, **shown[dataset, row], "task": task.name}
        if kind_of(task).reads_words:
            entry["word"] = int(judged.items.words[place])
        entry |= {"given": named(task, given), "proposed": named(task, proposal)}
        measured = {"quality": judged.quality, **judged.dynamics._asdict()}
        found.append(entry | {key: round(float(values[place]), 6) for key, values in measured.items()})
    return found


def summary(judged: Judged, estimated: int, listed: np.ndarray, proposals: np.ndarray) -> dict[str, Any]:
    """What ``report.json`` tells of a task.

    Returns:
        ``labels``, ``rows``: how many are labelled; ``estimated``: how many of the labels are wrong, as cleanlab
        estimates; ``listed``; ``agreement``: the share of labels that models which did not see them would answer;
        ``most_frequent``: the share of the most frequent label, or set of labels, which agreement has to exceed;
        ``of_labels``: ``labels`` and ``listed`` of each label; ``pairs``: given and proposed labels that differ, the
        most frequent first (of several labels an item those that should come, ``given: null``, or go); for IOB2 tags
        ``spans``, see :func:`span_changes`.
    """
    task, given = judged.task, judged.items.given
    many = kind_of(task).label_set == "many"
    counts, of_listed = (
        one.sum(axis=0) if many else np.bincount(one, minlength=len(task.labels)) for one in (given, given[listed])
    )
    pairs: Counter[tuple[str | None, str | None]] = Counter()
    for old, new in zip(given[listed], proposals, strict=True):
        if many:
            pairs.update((None, task.labels[place]) for place in np.flatnonzero(new > old))
            pairs.update((task.labels[place], None) for place in np.flatnonzero(new < old))
        elif old != new:
            pairs[task.labels[old], task.labels[new]] += 1
    return {
        "labels": len(given),
        "rows": len(judged.row_starts()),
        "estimated": estimated,
        "listed": len(listed),
        "agreement": float(is_answered(task, given, judged.probabilities).mean()),
        "most_frequent": float(np.unique(given, axis=0, return_counts=True)[1].max() / len(given)),
        "of_labels": {
            label: {"labels": int(one), "listed": int(other)}
            for label, one, other in zip(task.labels, counts, of_listed, strict=True)
        },
        "pairs": [
            {"given": old, "proposed": new, "count": count}
            for (old, new), count in sorted(pairs.items(), key=lambda pair: (-pair[1], str(pair[0])))
        ],
        **({"spans": span_changes(judged, listed, proposals)} if task.is_spans else {}),
    }


def span_changes(judged: Judged, listed: np.ndarray, proposals: np.ndarray) -> dict[str, int]:
    """What proposals would change of the spans of the rows in which they stand.

    Returns:
        ``given``: spans of these rows; ``other_kind``: spans that become one of another kind, at the same words;
        ``other_words``: that overlap proposed ones, but are none of them; ``gone``: that overlap none; ``new``:
        proposed ones that overlap no given one.
    """
    tags = np.array(judged.items.given)
    tags[listed] = proposals
    found = Counter({"given": 0, "other_kind": 0, "other_words": 0, "gone": 0, "new": 0})
    for _, row, _ in judged.by_row(listed):
        words = judged.items.words[row]
        sides = []
        for ids in (judged.items.given[row], tags[row]):
            names = ["O"] * (int(words[-1]) + 1)
            for word, one in zip(words.tolist(), ids.tolist(), strict=True):
                names[word] = judged.task.labels[one]
            sides.append(iob_spans(names))
        before, after = sides
        found["given"] += len(before)
        places = {(first, stop) for _, first, stop in after}
        for span in before:
            if span in after:
                continue
            if span[1:] in places:
                found["other_kind"] += 1
            else:
                found["other_words" if any(_overlap(span, other) for other in after) else "gone"] += 1
        found["new"] += sum(not any(_overlap(span, other) for other in before) for span in after)
    return dict(found)


def _overlap(one: tuple[str, int, int], other: tuple[str, int, int]) -> bool:
    return one[1] < other[2] and other[1] < one[2]
