"""How likely each given label is right: by models that did not see it (cleanlab), and by how it was learned.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 70. Training dynamics: Swayamdipta et al. 2020, "Dataset Cartography: Mapping and Diagnosing Datasets with Training
Dynamics", EMNLP.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nlp_mtl.errors import MissingExtraError
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.multi_label_classification import THRESHOLD
from nlp_mtl.tasks import Task


class Dynamics(NamedTuple):
    """How a given label fared at several points of a training run that learned from it; [items] each."""

    confidence: np.ndarray
    """The mean over the points of its quality: of one label an item, of the probability that the model gave it."""
    variability: np.ndarray
    """The standard deviation."""
    correctness: np.ndarray
    """The share of points at which the model would have answered it."""


def need_cleanlab() -> None:
    """See that what this needs is there, before anything is trained.

    Raises:
        MissingExtraError: cleanlab, or datasketch, is not installed.
    """
    try:
        import cleanlab.rank  # noqa: F401
        import datasketch  # noqa: F401
    except ImportError as error:
        message = f"nlp-mtl label-errors needs cleanlab and datasketch ({error}): pip install 'nlp_mtl[label-errors]'"
        raise MissingExtraError(message) from error


def quality(task: Task, given: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """[items] cleanlab's label quality, from 0 (wrong) to 1.

    Of one label an item it is its probability (``self_confidence``). Of several, the probabilities that each label of
    the set is rightly there, or rightly not there, are joined so that the lowest count most (cleanlab's exponential
    moving average). Words are scored one by one, as :mod:`cleanlab.token_classification` does it.

    Args:
        given: [items] label ids, or [items, labels] 0 or 1.
        probabilities: [items, labels]
    """
    from cleanlab.multilabel_classification.rank import get_label_quality_scores as set_scores
    from cleanlab.rank import get_label_quality_scores

    if not len(given):
        return np.zeros(0)
    probabilities = np.clip(probabilities, 0, 1)  # sums over sequences are off by rounding
    many = kind_of(task).label_set == "many"
    if many and len(task.labels) == 1:  # there or not: of a set of one cleanlab reads no list
        given, probabilities, many = given[:, 0], _both_ways(probabilities[:, 0]), False
    if many:
        # Each row is scored for itself. The last one is ours: cleanlab reads no list in which no row has a label.
        labels = [*_sets(given), [0]]
        scores = set_scores(labels, np.concatenate([probabilities, probabilities[:1]]))[:-1]
    else:
        scores = get_label_quality_scores(given, probabilities)
    return np.asarray(scores, dtype=np.float64)


def estimated_errors(task: Task, given: np.ndarray, probabilities: np.ndarray) -> int:
    """How many labels are wrong, by cleanlab's estimate from a confident joint of given and true labels.

    Of one label an item it is calibrated to the counts of given labels, as cleanlab advises for a cut in a ranking. Of
    several, an item is wrong for which one of them is; a label that all items have, or none, is taken as right.

    Args:
        given, probabilities: of models that did not see these labels, as in :func:`quality`. Of one label an item, at
            least two occur.
    """
    from cleanlab.count import num_label_issues
    from cleanlab.filter import find_label_issues

    probabilities = np.clip(probabilities, 0, 1)
    if kind_of(task).label_set == "one":
        return int(num_label_issues(given, probabilities, estimation_method="off_diagonal_calibrated"))
    wrong = np.zeros(len(given), dtype=bool)
    for label in np.flatnonzero(given.any(axis=0) & ~given.all(axis=0)):  # cleanlab refuses what never differs
        shares = _both_ways(probabilities[:, label])
        wrong |= find_label_issues(given[:, label], shares, filter_by="confident_learning", n_jobs=1)
    return int(wrong.sum())


def _both_ways(shares: np.ndarray) -> np.ndarray:
    """[items, 2] The probabilities that a label is not there, and that it is."""
    return np.stack([1 - shares, shares], axis=1)


def _sets(given: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(one).tolist() for one in given]


def is_answered(task: Task, given: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """[items] Whether the likeliest label, or set of labels, is the given one."""
    if kind_of(task).label_set == "many":
        return np.asarray(((probabilities > THRESHOLD) == (given == 1)).all(axis=1))
    return np.asarray(probabilities.argmax(axis=1) == given)


def dynamics(qualities: Sequence[np.ndarray], answered: Sequence[np.ndarray]) -> Dynamics:
    """What the points of a training run say together.

    Args:
        qualities: a point each, [items]
        answered: a point each, [items] whether the model would have answered the given label.
    """
    points = np.stack(qualities)
    return Dynamics(points.mean(axis=0), points.std(axis=0), np.stack(answered).mean(axis=0))


def worst(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the ``count`` lowest scores, lowest first; of equal ones the first."""
    return np.argsort(scores, kind="stable")[:count]
