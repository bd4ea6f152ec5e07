"""What the runs of a comparison add up to: the values of its ``report.json``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nlp_mtl.analysis.comparison import (
    FinishedRun,
    conflicts,
    learning_curves,
    mean_report,
    task_report,
    transfer,
    weights_over_time,
)
from nlp_mtl.analysis.prediction_cost import prediction_cost
from nlp_mtl.build import layout
from nlp_mtl.build_data import Prepared
from nlp_mtl.compare_recipes import budget, differences, group_name, planned_rows, training_tokens
from nlp_mtl.recipe import Recipe
from nlp_mtl.run_folder import command, versions
from nlp_mtl.timed_texts import timed_texts


@dataclass(frozen=True)
class Asked:
    """What a comparison is of."""

    folder: Path
    recipe: Recipe
    prepared: Prepared
    models: Mapping[str, Sequence[str]]
    splits: Mapping[str, str]
    """``{task: the split that it is compared on}``"""
    digests: Mapping[str, Mapping[str, str]]
    """``{dataset: {split: checksum of its rows}}``"""
    accelerator: Accelerator
    same_steps: bool
    keep_checkpoints: bool

    def run_folder(self, model: str, seed: int) -> Path:
        """Where a run of a model is."""
        return self.folder / "runs" / f"{model}-seed{seed}"


def comparison_report(
    asked: Asked,
    runs: Mapping[str, Sequence[FinishedRun]],
    recipes: Mapping[str, Sequence[Recipe]],
    unmeasured: str,
    pairs: bool,
    leave_one_out: bool,
) -> dict[str, Any]:
    """What ``report.json`` holds."""
    tasks, names = asked.prepared.tasks, [*asked.recipe.tasks]
    of_two = [(task, other) for task in names for other in names if task != other]
    together = {(a, b): (group_name((a, b), names), group_name((a,), names)) for a, b in of_two}
    rest = {(a, b): ("joint", group_name([name for name in names if name != b], names)) for a, b in of_two}
    joint = runs["joint"]
    drawn = budget(recipes["joint"][0], asked.prepared, joint[0].lines).rows
    return {
        "name": asked.folder.name,
        "seeds": [run.seed for run in joint],
        "same_steps": asked.same_steps,
        "tasks": {task.name: task_report(task, asked.splits[task.name], runs) for task in tasks},
        "mean": mean_report(tasks, runs),
        "transfer": {
            "pairs": transfer(tasks, runs, together) if pairs else {},
            "leave_one_out": transfer(tasks, runs, rest) if leave_one_out else {},
        },
        "conflicts": conflicts(joint),
        "conflicts_missing": unmeasured,
        "over_time": weights_over_time(joint),
        "learning_curves": learning_curves(tasks, runs),
        "cost": _cost(asked, runs, recipes),
        "models": {
            name: {
                "tasks": list(group),
                "differences": differences(recipes["joint"][0], recipes[name][0]) if name != "joint" else [],
                "rows": planned_rows(recipes[name][0], asked.prepared),
                "joint_rows": sum(drawn.get(dataset, 0) for dataset in recipes[name][0].datasets),
                "runs": [_run_report(asked.folder, one) for one in recipes[name]],
            }
            for name, group in asked.models.items()
        },
        "recipe": asked.recipe.to_dict(),
        "versions": versions(),
        "command": command(),
    }


def _run_report(folder: Path, recipe: Recipe) -> dict[str, Any]:
    results = json.loads((Path(recipe.output_dir) / "results.json").read_text(encoding="utf-8"))
    told = {key: results[key] for key in ("steps", "step", "scores")}
    return {"seed": recipe.seed, "folder": Path(recipe.output_dir).relative_to(folder).as_posix(), **told}


def _cost(
    asked: Asked, runs: Mapping[str, Sequence[FinishedRun]], recipes: Mapping[str, Sequence[Recipe]]
) -> dict[str, Any]:
    """Parameters, training tokens and prediction time of the joint model and of the single-task models together."""
    alone = {task: group_name((task,), [*asked.recipe.tasks]) for task in asked.recipe.tasks}

    def tokens(name: str) -> int | None:
        run, recipe = runs[name][0], recipes[name][0]
        num_steps = _run_report(asked.folder, recipe)["steps"]
        return training_tokens(recipe, asked.prepared, run.lines, num_steps)

    of_tasks = {name: tokens(name) for name in alone.values()}
    known = [count for count in of_tasks.values() if count is not None]
    measured_times = prediction_cost(
        Path(recipes["joint"][0].output_dir),
        {task: Path(recipes[name][0].output_dir) for task, name in alone.items()},
        *_texts(asked),
        max_tokens=asked.recipe.training.max_tokens,
        mixed_precision=asked.recipe.training.mixed_precision,
        layout=layout(asked.recipe),
    )
    total = sum(known) if len(known) == len(of_tasks) else None
    return {**measured_times, "training_tokens": {"joint": tokens("joint"), "alone": total, "of_models": of_tasks}}


def _texts(asked: Asked) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The first texts of the datasets that are compared on: single ones, and pairs."""
    splits = {
        dataset: split
        for split in ("validation", "test")
        for dataset, rows in asked.prepared.split(split).items()
        if any(asked.splits[task] == split for task in rows.tasks)
    }
    return timed_texts(asked.prepared, splits)
