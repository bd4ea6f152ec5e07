"""What the runs of a comparison say: does joint training pay, task by task?"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlp_mtl.analysis.bootstrap import Comparison, RowAnswers, compare_runs, compare_tasks
from nlp_mtl.task_types import score_task
from nlp_mtl.tasks import Task

VERDICTS = {"helped": "joint training helped", "hurt": "joint training hurt",
            "no difference": "no difference at this sample size"}  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """A run of a comparison."""

    model: str
    """``joint``, ``only-ner``, ...; see :func:`nlp_mtl.compare_recipes.group_name`."""
    seed: int
    answers: Mapping[str, RowAnswers]
    """``{task: answers on its test rows}``"""
    lines: Sequence[Mapping[str, Any]]
    """Its ``metrics.jsonl``."""


Runs = Mapping[str, Sequence[FinishedRun]]
"""``{model: its runs, by seed}``"""


def compared(task: Task, one: Sequence[FinishedRun], other: Sequence[FinishedRun]) -> dict[str, Any]:
    """A model against another in one task: ``difference``, ``interval`` over test rows, ``differences`` by seed, and
    ``verdict``: ``helped``, ``hurt`` or ``no difference``.

    Joint training helped (or hurt) where the whole interval is above 0 (below), and the difference of every seed is.
    """
    by_seed = [ours - theirs for ours, theirs in zip(*(scores(task, runs) for runs in (one, other)), strict=True)]
    return _judged(compare_runs(task, _answers(task, one), _answers(task, other)), by_seed)


def _answers(task: Task, runs: Sequence[FinishedRun]) -> list[RowAnswers]:
    return [run.answers[task.name] for run in runs]


def _judged(found: Comparison, by_seed: Sequence[float]) -> dict[str, Any]:
    verdict = "no difference"
    if found.low > 0 and min(by_seed) > 0:
        verdict = "helped"
    elif found.high < 0 and max(by_seed) < 0:
        verdict = "hurt"
    return {
        "difference": found.difference,
        "interval": [found.low, found.high],
        "resamples": found.resamples,
        "differences": list(by_seed),
        "verdict": verdict,
    }


def scores(task: Task, runs: Sequence[FinishedRun]) -> list[float]:
    """The main metric of each run."""
    return [
        float(score_task(task, run.answers[task.name].gold, run.answers[task.name].predicted)[task.metric])
        for run in runs
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, ``sd`` (sample standard deviation; None of one value) and the ``scores`` themselves."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "scores": list(values),
    }


def task_report(task: Task, split: str, runs: Runs) -> dict[str, Any]:
    """The joint model against the task's own: scores, difference, verdict, and a sentence that tells it."""
    joint, alone = runs["joint"], runs[f"only-{task.name}"]
    report = {
        "metric": task.metric,
        "split": split,
        "rows": len(set(joint[0].answers[task.name].rows)),
        "joint": spread(scores(task, joint)),
        "alone": spread(scores(task, alone)),
        **compared(task, joint, alone),
    }
    return {**report, "sentence": _sentence(task.name, report)}


def mean_report(tasks: Sequence[Task], runs: Runs) -> dict[str, Any]:
    """The joint model against the single-task models in the mean over tasks of their main metrics, as :func:`compared`
    tells it of one; with ``joint`` and ``alone``."""
    joint = runs["joint"]
    alone = {task.name: runs[f"only-{task.name}"] for task in tasks}
    by_task = {
        "joint": [scores(task, joint) for task in tasks],
        "alone": [scores(task, alone[task.name]) for task in tasks],
    }
    means = {name: [*map(statistics.fmean, zip(*found, strict=True))] for name, found in by_task.items()}
    by_seed = [ours - theirs for ours, theirs in zip(means["joint"], means["alone"], strict=True)]
    of_tasks = [(task, _answers(task, joint), _answers(task, alone[task.name])) for task in tasks]
    rows = {row for _, answers, _ in of_tasks for row in answers[0].rows}
    report = {
        "metric": "mean of the main metrics",
        "split": "scored",
        "rows": len(rows),
        "joint": spread(means["joint"]),
        "alone": spread(means["alone"]),
        **_judged(compare_tasks(of_tasks), by_seed),
    }
    return {**report, "sentence": _sentence(f"all {len(tasks)} tasks", report)}


def _sentence(task: str, report: Mapping[str, Any]) -> str:
    low, high = report["interval"]
    seeds = report["differences"]
    told = (
        f"{task}: {VERDICTS[report['verdict']]}. {report['metric'].replace('_', ' ')} {report['joint']['mean']:.4f} "
        f"jointly against {report['alone']['mean']:.4f} alone, {report['difference']:+.4f} (95% interval over "
        f"{report['rows']:,} {report['split']} rows {low:+.4f} to {high:+.4f}; "
    )
    if len(seeds) == 1:
        return told + "one seed, so chance in training is not seen)."
    above, below = sum(value > 0 for value in seeds), sum(value < 0 for value in seeds)
    told += f"by seed {min(seeds):+.4f} to {max(seeds):+.4f})."
    if report["verdict"] == "no difference" and (low > 0 or high < 0):
        told += f" The interval leaves out 0, but not all seeds say so: {above} above, {below} below."
    return told


def transfer(tasks: Sequence[Task], runs: Runs, models: Mapping[tuple[str, str], tuple[str, str]]) -> dict[str, Any]:
    """``{task: {other: comparison}}``: what another task gives to a task.

    Args:
        models: ``{(task, other): (a model, the one that it is compared with)}``.
    """
    by_name = {task.name: task for task in tasks}
    found: dict[str, Any] = {}
    for (task, other), (one, less) in models.items():
        if task in by_name:
            found.setdefault(task, {})[other] = compared(by_name[task], runs[one], runs[less])
    return found


def conflicts(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The cosines between the tasks' gradients in joint runs; nothing where none were measured.

    Returns:
        ``mean`` and ``negative`` (the share of measurements below 0) ``{"ner/pos": value}``, over all runs and
        measurements, and ``over_time`` ``{seed: [[step, {"ner/pos": cosine}]]}``.
    """
    over_time = {
        str(run.seed): [[line["step"], line["gradient_cosines"]] for line in run.lines if line.get("gradient_cosines")]
        for run in runs
    }
    values: dict[str, list[float]] = {}
    for points in over_time.values():
        for _, cosines in points:
            for pair, cosine in cosines.items():
                values.setdefault(pair, []).append(cosine)
    if not values:
        return {}
    return {
        "mean": {pair: statistics.fmean(found) for pair, found in values.items()},
        "negative": {pair: sum(one < 0 for one in found) / len(found) for pair, found in values.items()},
        "over_time": over_time,
    }


def weights_over_time(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """What changes while joint runs train: ``{what: {seed: [[step, {name: value}]]}}``.

    ``weights`` are the balancing's, ``gradient_weights`` those of gradient methods, ``shares`` those of dynamic
    sampling; what stays the same is left out.
    """
    found: dict[str, Any] = {}
    for key in ("weights", "gradient_weights", "shares"):
        curves = {str(run.seed): [[line["step"], line[key]] for line in run.lines if line.get(key)] for run in runs}
        told = [values for points in curves.values() for _, values in points]
        if any(values != told[0] for values in told):
            found[key] = curves
    return found


def learning_curves(tasks: Sequence[Task], runs: Runs) -> dict[str, Any]:
    """``{task: {model: {seed: [[share of the run, main metric on validation]]}}}``, joint and single-task runs."""
    curves: dict[str, Any] = {}
    for task in tasks:
        for model in ("joint", f"only-{task.name}"):
            for run in runs[model]:
                last = max((line["step"] for line in run.lines), default=1)
                points = [
                    [line["step"] / last, line["scores"][task.name][task.metric]]
                    for line in run.lines
                    if task.name in line.get("scores", {})
                ]
                curves.setdefault(task.name, {}).setdefault(model, {})[str(run.seed)] = points
    return curves
