"""The task types: each is a module here, with all that makes it differ from the others. See ``docs/task_types.md``.

To add one: a module with its :class:`TaskKind`, a line in :data:`KINDS`, and its name in
:data:`nlp_mtl.tasks.TaskType`.
"""

from collections.abc import Sequence
from typing import Any

from nlp_mtl.metrics import Scores
from nlp_mtl.task_types.crf import CRF_TOKEN_CLASSIFICATION
from nlp_mtl.task_types.kind import TaskKind
from nlp_mtl.task_types.multi_label_classification import MULTI_LABEL_CLASSIFICATION
from nlp_mtl.task_types.regression import REGRESSION
from nlp_mtl.task_types.text_classification import TEXT_CLASSIFICATION
from nlp_mtl.task_types.token_classification import IOB2_TOKEN_CLASSIFICATION, TOKEN_CLASSIFICATION
from nlp_mtl.tasks import Decoder, Task, TaskType

__all__ = ["KINDS", "TaskKind", "kind_named", "kind_of", "score_task"]

KINDS: dict[TaskType, TaskKind] = {
    "token-classification": TOKEN_CLASSIFICATION,
    "text-classification": TEXT_CLASSIFICATION,
    "multi-label-classification": MULTI_LABEL_CLASSIFICATION,
    "regression": REGRESSION,
}


DECODERS: dict[Decoder, TaskKind] = {"iob2": IOB2_TOKEN_CLASSIFICATION, "crf": CRF_TOKEN_CLASSIFICATION}
"""Ways to choose the labels of words together."""


def kind_named(type: Any) -> TaskKind | None:
    """The kind of that name; None: there is none."""
    return next((kind for name, kind in KINDS.items() if name == type), None)


def kind_of(task: Task) -> TaskKind:
    """What a task is."""
    return DECODERS.get(task.decoder, KINDS[task.type])


def score_task(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> Scores:
    """All scores of a task: the main metric first.

    Args:
        gold: what :attr:`TaskKind.compared` gave of all rows: a label a row for text classification, a sequence of
            labels a row for tokens, a set of labels a row for several labels, a number a row for regression.
        predicted: the same shape.

    Returns:
        the type's metrics and ``items`` (labels counted); where there are labels also ``per_label``. Empty gold gives
        an empty result: there is nothing to say.
    """
    scores = kind_of(task).scores(task, gold, predicted)
    return {task.metric: scores.pop(task.metric), **scores} if scores else {}
