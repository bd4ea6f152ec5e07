"""What a run that is not kept tells while it trains, and what it learns from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlp_mtl.models.multitask import MultiTaskModel

Evaluated = Callable[[int, float], None]
"""Takes the number of an evaluation, counted from 1, and its selection score."""

Look = Callable[[MultiTaskModel, int | None, Mapping[str, Any]], None]
"""Takes a model, on every process: at each evaluation, with its step; in the end the best one, with None. And how it is
scored: options of :func:`nlp_mtl.evaluation.answer`."""


@dataclass(frozen=True)
class Trial:
    """A run that does not look at the test split, and keeps no model and no plots."""

    evaluated: Evaluated | None = None
    """Told of each evaluation but that of the last step; what it raises ends the run."""
    look: Look = lambda model, step, options: None
    train_rows: Mapping[str, np.ndarray] | None = None
    """``{dataset: places of the training rows that it learns from}``; all of others."""
