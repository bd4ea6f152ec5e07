"""What a task type is: everything that differs from one type to another, as plain functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from nlp_mtl.metrics import Scores
from nlp_mtl.tasks import MISSING, LossShape, Metric, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

Target = list[int] | list[float]
"""What a row is to learn, as the data keeps it. Empty: the row has no label of the task."""


class Reader(Protocol):
    """Turns values of a label column into ids; see :class:`nlp_mtl.data.labels.LabelReader`."""

    task: str
    labels: tuple[str, ...]
    indicators: int
    """How long all lists are, if they have a 0 or 1 for each name; 0: they hold names or ids."""

    def __call__(self, value: Any, /) -> int:
        """The id of one value, MISSING for none; KeyError: it is unknown."""

    def unknown(self, value: Any, where: str) -> Exception:
        """The error for a value that is unknown."""


class Decision(NamedTuple):
    """What a row's logits decide."""

    chosen: np.ndarray
    """In the form of a target: [words] label ids; [1] a label's id; [labels] 0 or 1; [1] a number."""
    scores: np.ndarray
    """Probabilities, [words, labels] or [labels]; [1] a number."""


@dataclass(frozen=True)
class TaskKind:
    """A task type. No function here may need torch when it is imported: recipes are read without."""

    stock: Literal["token-classification", "text-classification"]
    """What the head is: a stock ``AutoModelForTokenClassification`` (a row of logits a token) or
    ``AutoModelForSequenceClassification`` (one a text). Also the name of the ``pipeline()`` that reads its export."""
    problem_type: ProblemType | None
    """What the exported configuration says, so that ``pipeline()`` answers right."""
    label_set: Literal["one", "many", "none"]
    """How many labels of the label set an item (a word or a text) has; ``none``: there is no label set."""
    is_list: bool
    """Whether a cell of the label column holds a list."""
    dtype: Literal["int32", "float64"]
    """How targets are stored."""
    metrics: tuple[Metric, ...]
    """Those that can be the main metric."""
    default_metric: Callable[[Sequence[str]], Metric]
    """The main metric where the recipe does not say, by the label set."""
    target: Callable[[Reader, Any, int, Callable[[], str]], Target]
    """``(reader, cell, words of the row, where)``: a cell of the label column to a target; DataError tells where."""
    tensor: Callable[[Sequence[Target]], "Tensor"]
    """Targets of r texts as a tensor, [r] or [r, labels]. (Words: see :mod:`nlp_mtl.data.batches`.)"""
    summed_loss: Callable[["Tensor", "Tensor", "Tensor", LossShape], "Tensor"]
    """``(logits, targets, weights, shape)``: the sum of the losses of all labelled items; differentiable, 0 of none.
    ``shape``: what the recipe changes of it; of a type without a label set nothing."""
    divergence: Callable[["Tensor", "Tensor", float], "Tensor"]
    """``(logits, a teacher's, temperature)``, [..., labels] each: how far answers are from the teacher's, [...];
    differentiable, 0 where they are the same."""
    drawn: Callable[["Tensor", "Tensor", "Generator"], "Tensor"]
    """``(logits, targets, generator)``: other targets for the same items, drawn as likely as the model finds them."""
    guess_loss: Callable[[Task], float] | None
    """What an item loses that is guessed, for scales; None: the label set does not tell."""
    decide: Callable[[Task, Sequence[np.ndarray], np.ndarray | None], list[Decision]]
    """``(task, logits, transitions)``: rows' logits ([words, labels] or [labels] each) to a decision for each, all rows
    at once. ``transitions``: of labels that are learned with what stands beside them; others need none."""
    compared: Callable[[Task, np.ndarray, np.ndarray], tuple[list[Any], list[Any]]]
    """``(task, target, chosen)`` of a row to what ``scores`` reads: gold, predicted."""
    scores: Callable[[Task, Sequence[Any], Sequence[Any]], Scores]
    """``(task, gold, predicted)`` of all rows to metrics; those of ``metrics`` are among them."""
    answer: Callable[[Task, Decision, str, Sequence[tuple[int, int]], bool], Any]
    """``(task, decision, text, where its words lie, with the scores of all labels?)`` to what a user gets: plain
    values."""

    @property
    def reads_words(self) -> bool:
        """Whether labels are those of words; else they are those of whole texts."""
        return self.stock == "token-classification"

    def num_items(self, target: Sequence[float]) -> int:
        """Labelled items of a row: words, or 1 for a text."""
        return len(target) - sum(one == MISSING for one in target) if self.reads_words else int(len(target) > 0)

    def labels_of(self, target: Sequence[float]) -> Sequence[int]:
        """The ids of the labels that a row has somewhere."""
        return np.flatnonzero(target).tolist() if self.label_set == "many" else [int(one) for one in target]
