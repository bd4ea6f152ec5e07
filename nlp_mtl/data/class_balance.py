"""Classes of a text-classification dataset in equal numbers: more of the rare ones, or fewer of the others."""

from collections.abc import Callable

import numpy as np

from nlp_mtl.tasks import MISSING


def oversampled(classes: np.ndarray, seed: int) -> tuple[int, Callable[[int], np.ndarray]]:
    """Every class as often as the largest: its rows again and again, and what is missing then drawn anew each pass.

    Args:
        classes: [rows] the class of each row; MISSING: a row without one, which comes once.

    Returns:
        the rows in a pass, and the rows of a pass by its number.
    """
    groups, others = _groups(classes)
    most = max(len(group) for group in groups)

    def rows_of(number: int) -> np.ndarray:
        draw = np.random.default_rng([seed, 3, number])
        parts = [others]
        for group in groups:
            whole, rest = divmod(most, len(group))
            parts += [np.tile(group, whole), draw.choice(group, rest, replace=False)]
        return np.concatenate(parts).astype(np.int32)

    return most * len(groups) + len(others), rows_of


def undersampled(classes: np.ndarray, seed: int) -> tuple[int, Callable[[int], np.ndarray]]:
    """Every class as often as the smallest; which rows of the others come is drawn anew each pass.

    Arguments and values are those of :func:`oversampled`.
    """
    groups, others = _groups(classes)
    fewest = min(len(group) for group in groups)

    def rows_of(number: int) -> np.ndarray:
        draw = np.random.default_rng([seed, 3, number])
        parts = [others, *(draw.choice(group, fewest, replace=False) for group in groups)]
        return np.concatenate(parts).astype(np.int32)

    return fewest * len(groups) + len(others), rows_of


def _groups(classes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows of each class that occurs, and those without one."""
    found = [np.flatnonzero(classes == one) for one in np.unique(classes[classes != MISSING])]
    return found, np.flatnonzero(classes == MISSING)
