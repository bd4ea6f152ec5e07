"""What predictions cost: one model for all tasks against a model a task, or a model against a smaller one."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlp_mtl.inference.predictor import Predictor, load

REPEATS = 3
"""How often each is timed, by turns: what slows the machine for a while slows all."""


Text = str | Sequence[str]
"""A text, or its words."""


def prediction_cost(
    joint: Path, alone: Mapping[str, Path], texts: Sequence[Text], pairs: Sequence[tuple[Text, Text]], **options: Any
) -> dict[str, Any]:
    """Parameters, and seconds to answer for texts, in this process on this machine: once jointly, and task by task.

    Args:
        joint: the run folder of the joint model.
        alone: ``{task: run folder}``.
        texts: what tasks of single texts answer for.
        pairs: what tasks of pairs answer for.
        options: of :func:`nlp_mtl.inference.predictor.load`.

    Returns:
        ``parameters`` and ``seconds`` of ``joint`` and ``alone`` (all tasks together), the medians of a few repeats;
        ``ratio`` of the seconds, alone by joint; how many ``texts`` and ``pairs``; ``device``.
    """
    one = load(joint, **options)
    others = [load(folder, **options) for folder in alone.values()]
    medians = seconds_to_answer({"joint": [one], "alone": others}, texts, pairs)
    return {
        "parameters": {"joint": _parameters([one]), "alone": _parameters(others)},
        "seconds": medians,
        "ratio": medians["alone"] / medians["joint"],
        "texts": len(texts),
        "pairs": len(pairs),
        "device": str(one.model.device),
    }


def seconds_to_answer(
    predictors: Mapping[str, Sequence[Predictor]], texts: Sequence[Text], pairs: Sequence[tuple[Text, Text]]
) -> dict[str, float]:
    """Seconds to answer for texts, in this process on this machine: the medians of a few repeats, by turns.

    Args:
        predictors: ``{name: those that answer one after the other}``
    """
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for predictor in (one for some in predictors.values() for one in some):
        _answer(predictor, texts[:8], pairs[:8])  # what is slow the first time does not count
    for _ in range(REPEATS):
        for name, some in predictors.items():
            seconds[name].append(_seconds(some, texts, pairs))
    return {name: statistics.median(found) for name, found in seconds.items()}


def _seconds(predictors: Sequence[Predictor], texts: Sequence[Text], pairs: Sequence[tuple[Text, Text]]) -> float:
    start = time.perf_counter()
    for predictor in predictors:
        _answer(predictor, texts, pairs)  # answers are on the CPU when it returns
    return time.perf_counter() - start


def _answer(predictor: Predictor, texts: Sequence[Text], pairs: Sequence[tuple[Text, Text]]) -> None:
    """Answer all tasks of a model, which may be of both kinds."""
    kinds = {task.pairs for task in predictor.tasks}
    if False in kinds:
        predictor(texts)
    if True in kinds:
        predictor([first for first, _ in pairs], text_pair=[second for _, second in pairs])


def _parameters(predictors: Sequence[Predictor]) -> int:
    return sum(parameter.numel() for predictor in predictors for parameter in predictor.model.parameters())
