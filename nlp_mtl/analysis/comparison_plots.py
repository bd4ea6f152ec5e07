"""Pictures of a comparison, from its report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlp_mtl.analysis.plots import DOTS_PER_INCH, figure

_JOINT, _ALONE = "#1f6fb4", "#d9731a"

_TITLES = {
    "weights": "weight of the loss",
    "gradient_weights": "weight of the gradient",
    "shares": "share of the dataset",
}


def draw_comparison(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what a report tells: ``differences.png``, ``learning_curves.png``, heat maps of transfer and conflicts, and
    what changed over the steps. What a comparison has not measured has no picture.

    Args:
        report: see :func:`nlp_mtl.compare.compare`.
        folder: an existing one.

    Returns:
        the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = {"differences": _differences(report["tasks"]), "learning_curves": _learning_curves(report)}
    tasks = [*report["tasks"]]
    for kind, title in (("pairs", "gain by training with"), ("leave_one_out", "gain in the joint model by")):
        found = report["transfer"][kind]
        if found:
            values = {one: {other: of["difference"] for other, of in others.items()} for one, others in found.items()}
            drawn[f"transfer_{kind}"] = _heat_map(tasks, values, title, None)
    conflicts = report["conflicts"]
    if conflicts:
        drawn["conflicts"] = _heat_map(tasks, _both_ways(conflicts["mean"]), "mean cosine of the gradients", 1.0)
        curves = conflicts["over_time"]
        if any(len(points) > 1 for points in curves.values()):
            drawn["conflicts_over_time"] = _over_time(curves, "cosine of the gradients", zero=True)
    for what, curves in report["over_time"].items():
        drawn[f"{what}_over_time"] = _over_time(curves, _TITLES[what])
    paths = []
    for name, picture in drawn.items():
        if picture is not None:
            paths.append(folder / f"{name}.png")
            picture.savefig(paths[-1], dpi=DOTS_PER_INCH)
    return paths


def _differences(tasks: Mapping[str, Any]) -> Any:
    """Each task's difference with its interval, and the seeds as points."""
    picture = figure(7.0, 1.2 + 0.5 * len(tasks))
    axes = picture.add_subplot()
    for place, one in enumerate(tasks.values()):
        low, high = one["interval"]
        axes.plot([low, high], [place, place], color=_JOINT, linewidth=3, solid_capstyle="butt", alpha=0.5)
        axes.plot(one["differences"], [place] * len(one["differences"]), "o", color="black", markersize=3)
        axes.plot([one["difference"]], [place], "|", color=_JOINT, markersize=16, markeredgewidth=3)
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_yticks(range(len(tasks)), [f"{name} ({one['metric'].replace('_', ' ')})" for name, one in tasks.items()])
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel("joint less single-task; bar: 95% interval over test rows, points: seeds")
    axes.grid(alpha=0.3, axis="x")
    return picture


def _learning_curves(report: Mapping[str, Any]) -> Any:
    curves = report["learning_curves"]
    if not any(len(points) > 1 for models in curves.values() for seeds in models.values() for points in seeds.values()):
        return None
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    picture = figure(4.2 * columns, 3.0 * rows)
    for place, (task, models) in enumerate(curves.items(), start=1):
        axes = picture.add_subplot(rows, columns, place)
        for model, seeds in models.items():
            for number, points in enumerate(seeds.values()):
                if points:
                    x, y = zip(*points, strict=True)
                    label = ("joint" if model == "joint" else "single-task") if not number else None
                    colour = _JOINT if model == "joint" else _ALONE
                    axes.plot([100 * share for share in x], y, color=colour, marker=".", alpha=0.7, label=label)
        axes.set_title(task)
        axes.set_xlabel("% of the run")
        axes.set_ylabel(f"{report['tasks'][task]['metric'].replace('_', ' ')} on validation")
        axes.grid(alpha=0.3)
        axes.legend()
    return picture


def _both_ways(pairs: Mapping[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for pair, value in pairs.items():
        one, other = pair.split("/")
        found.setdefault(one, {})[other] = found.setdefault(other, {})[one] = value
    return found


def _heat_map(tasks: Sequence[str], values: Mapping[str, Mapping[str, float]], title: str, limit: float | None) -> Any:
    """A row a task, a column each other; red below 0, blue above."""
    matrix = np.array([[values.get(one, {}).get(other, np.nan) for other in tasks] for one in tasks])
    largest = limit or max(float(np.nanmax(np.abs(matrix), initial=0.0)), 1e-6)
    picture = figure(2.0 + 0.9 * len(tasks), 1.6 + 0.6 * len(tasks))
    axes = picture.add_subplot()
    image = axes.imshow(matrix, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_title(title)
    for row, column in np.argwhere(~np.isnan(matrix)).tolist():
        value = matrix[row, column]
        dark = abs(value) > 0.6 * largest
        axes.text(column, row, f"{value:+.3f}", ha="center", va="center", color="white" if dark else "black")
    picture.colorbar(image)
    return picture


def _over_time(seeds: Mapping[str, Sequence[Any]], what: str, *, zero: bool = False) -> Any:
    """A line a name and seed, the first seed's in full colour."""
    names = list(dict.fromkeys(name for points in seeds.values() for _, values in points for name in values))
    picture = figure()
    axes = picture.add_subplot()
    for place, name in enumerate(names):
        for number, points in enumerate(seeds.values()):
            known = [(step, values[name]) for step, values in points if name in values]
            if known:
                steps, values = zip(*known, strict=True)
                label = name if not number else None
                axes.plot(steps, values, color=f"C{place % 10}", alpha=0.9 if not number else 0.35, label=label)
    if zero:
        axes.axhline(0, color="gray", linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    axes.legend()
    return picture
