"""What a task is: a name, a type, a label set, a metric and a loss weight. Nothing here needs torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

TaskType = Literal["token-classification", "text-classification", "multi-label-classification", "regression"]
"""Task types, called as the Hub calls them where it has a name; what each of them is: :mod:`nlp_mtl.task_types`."""

Metric = Literal["span_f1", "accuracy", "macro_f1", "micro_f1", "exact_match", "pearson", "spearman"]
"""What can be a task's main metric: more is better, 1 is best."""

Decoder = Literal["softmax", "iob2", "crf"]

MISSING = -100
"""The id of "no label here": what torch's losses ignore."""


class LossShape(NamedTuple):
    """What is changed of a task's loss while it is trained; see :mod:`nlp_mtl.task_types.losses`."""

    class_weights: tuple[float, ...] = ()
    """One a label; none: 1 each."""
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0


PLAIN_LOSS = LossShape()


@dataclass(frozen=True)
class Task:
    """One thing to predict."""

    name: str
    type: TaskType
    labels: tuple[str, ...]
    """The label set: a label's id is its place here. Of a regression task, what its one output is called."""
    metric: Metric
    """The main metric: what model selection looks at."""
    loss_weight: float = 1.0
    pairs: bool = False
    """Whether it reads pairs of texts; else single ones."""
    decoder: Decoder = "softmax"
    """How labels of words are chosen: each for itself; together, as IOB2 allows; or by what was learned of their order
    (:mod:`nlp_mtl.task_types.crf`), and as IOB2 allows."""
    loss: LossShape = PLAIN_LOSS
    """Of training alone: a model does not keep it."""

    @property
    def is_spans(self) -> bool:
        """Whether the labels are IOB2 tags, so that answers are spans rather than a label a word."""
        return self.type == "token-classification" and are_iob(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "loss"} | {"labels": list(self.labels)}


def transitions_key(task: str) -> str:
    """Under which name a model's output holds the transitions of a task with the decoder ``crf``."""
    return f"{task}/transitions"


def task_from_dict(values: dict[str, Any]) -> Task:
    """The task that :meth:`Task.to_dict` wrote."""
    return Task(**{**values, "labels": tuple(values["labels"])})


def is_iob(label: str) -> bool:
    """Whether a label is an IOB tag: ``O``, ``B-X`` or ``I-X``."""
    return label == "O" or (label[:2] in ("B-", "I-") and len(label) > 2)


def are_iob(labels: Sequence[str]) -> bool:
    """Whether a label set is one of IOB tags (with at least one kind of span)."""
    return all(map(is_iob, labels)) and any(label != "O" for label in labels)


def iob2_break(tags: Sequence[str]) -> int | None:
    """The place of the first tag that IOB2 forbids (an ``I-X`` that continues no X), or None."""
    previous = "O"
    for place, tag in enumerate(tags):
        if tag[:2] == "I-" and previous[2:] != tag[2:]:
            return place
        previous = tag
    return None


def iob_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Spans ``(type, first, stop)`` of IOB tags, as a reader means them.

    A span starts at ``B-X``, and also at an ``I-X`` that continues no X: a model may say that, and a
    reader takes it as a span. (The strict metric does not; see :mod:`nlp_mtl.metrics`.)
    """
    spans: list[tuple[str, int, int]] = []
    kind, first = "", 0
    for place, tag in enumerate([*tags, "O"]):
        if kind and not (tag[:2] == "I-" and tag[2:] == kind):
            spans.append((kind, first, place))
            kind = ""
        if tag != "O" and not kind:
            kind, first = tag[2:], place
    return spans
