"""Pictures of how a run went, from its ``metrics.jsonl``, and of how a search went."""

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from nlp_mtl.errors import MissingExtraError

_SIZE, DOTS_PER_INCH = (7.0, 4.0), 110


def draw_plots(metrics_file: Path, folder: Path, main_metrics: Mapping[str, str]) -> list[Path]:
    """Draw the tasks' losses over steps (``losses.png``) and their main metrics on validation (``scores.png``).

    Args:
        metrics_file: a run's ``metrics.jsonl``.
        folder: an existing one.
        main_metrics: ``{task: metric}``.

    Returns:
        the files; what was measured less than twice has none.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if not metrics_file.exists():  # a checkpoint may come before the first line
        return []
    lines = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    losses = {
        task: [(line["step"], line["losses"][task]) for line in lines if task in line.get("losses", {})]
        for task in main_metrics
    }
    scores = {
        f"{task} ({metric.replace('_', ' ')})": [
            (line["step"], line["scores"][task][metric]) for line in lines if task in line.get("scores", {})
        ]
        for task, metric in main_metrics.items()
    }
    selection = [(line["step"], line["selection_score"]) for line in lines if line.get("selection_score") is not None]
    if len(main_metrics) > 1:
        scores["selection score"] = selection
    drawn = [
        _draw(losses, "loss", folder / "losses.png"),
        _draw(scores, "score on validation", folder / "scores.png"),
    ]
    return [path for path in drawn if path is not None]


def draw_history(scores: Mapping[int, float], pruned: Collection[int], path: Path) -> None:
    """Draw the scores of trials by their numbers, and the best so far.

    Args:
        scores: ``{trial: score}``.
        pruned: those that were stopped early, whose scores are of a part of their training.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    axes = _axes()
    whole = sorted((number, score) for number, score in scores.items() if number not in pruned)
    early = sorted((number, score) for number, score in scores.items() if number in pruned)
    if whole:
        numbers, found = zip(*whole, strict=True)
        axes.plot(numbers, found, "o", label="finished")
        axes.step(numbers, list(accumulate(found, max)), where="post", color="black", label="the best so far")
    if early:
        axes.plot(*zip(*early, strict=True), "x", color="grey", label="pruned")
    axes.set_xlabel("trial")
    axes.set_ylabel("selection score on validation")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.figure.savefig(path, dpi=DOTS_PER_INCH)


def _draw(curves: Mapping[str, Sequence[tuple[int, float]]], what: str, path: Path) -> Path | None:
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    axes = _axes()
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        own = {"color": "black", "linestyle": "--"} if name == "selection score" else {}
        axes.plot(steps, values, label=name, marker="." if len(points) < 30 else None, **own)
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _axes() -> Any:
    return figure().add_subplot()


def figure(width: float = _SIZE[0], height: float = _SIZE[1]) -> Any:
    """An empty picture, to be saved with :data:`DOTS_PER_INCH`. Sizes are in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # and no pyplot, which would look for a screen
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'nlp_mtl[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")
