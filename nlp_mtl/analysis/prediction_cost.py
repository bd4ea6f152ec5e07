"""What predictions of one model for all tasks cost, against a model a task."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlp_mtl.inference.predictor import Predictor, load

REPEATS = 3
"""How often each is timed, by turns: what slows the machine for a while slows all."""


def prediction_cost(
    joint: Path, alone: Mapping[str, Path], texts: Sequence[str | Sequence[str]], **options: Any
) -> dict[str, Any]:
    """Parameters, and seconds to answer for texts, in this process on this machine: once jointly, and task by task.

    Args:
        joint: the run folder of the joint model.
        alone: ``{task: run folder}``.
        texts: what to answer for.
        options: of :func:`nlp_mtl.inference.predictor.load`.

    Returns:
        ``parameters`` and ``seconds`` of ``joint`` and ``alone`` (all tasks together), the medians of a few repeats;
        ``ratio`` of the seconds, alone by joint; ``texts``, ``device``.
    """
    one = load(joint, **options)
    others = [load(folder, **options) for folder in alone.values()]
    seconds: dict[str, list[float]] = {"joint": [], "alone": []}
    for predictor in (one, *others):
        predictor(texts[:8])  # what is slow the first time does not count
    for _ in range(REPEATS):
        seconds["joint"].append(_seconds([one], texts))
        seconds["alone"].append(_seconds(others, texts))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "parameters": {"joint": _parameters([one]), "alone": _parameters(others)},
        "seconds": medians,
        "ratio": medians["alone"] / medians["joint"],
        "texts": len(texts),
        "device": str(one.model.device),
    }


def _seconds(predictors: Sequence[Predictor], texts: Sequence[str | Sequence[str]]) -> float:
    start = time.perf_counter()
    for predictor in predictors:
        predictor(texts)  # answers are on the CPU when it returns
    return time.perf_counter() - start


def _parameters(predictors: Sequence[Predictor]) -> int:
    return sum(parameter.numel() for predictor in predictors for parameter in predictor.model.parameters())
