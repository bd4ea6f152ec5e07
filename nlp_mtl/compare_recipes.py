"""The recipes of a comparison: the joint runs, and runs of some of the tasks on the same rows at the same budget."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nlp_mtl.build import new_model, scored_tasks, steps, steps_per_epoch
from nlp_mtl.build_data import Prepared
from nlp_mtl.data.encoded_splits import EncodedSplit, Split
from nlp_mtl.data.items import Framing, item_lengths, read_items
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.distillation_checks import steps_have_one_task
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_reading import changed_keys
from nlp_mtl.task_types import KINDS
from nlp_mtl.training.gradients import shared_parameters

MEASURED_STEPS = 20
"""In about so many steps of a joint run the tasks' gradients are told apart."""

_ROWS_AT_ONCE = 4096


def groups(tasks: Sequence[str], pairs: bool, leave_one_out: bool) -> dict[str, tuple[str, ...]]:
    """``{name: tasks}`` of the models of a comparison, the joint one first; each set of tasks is there once."""
    wanted = [tuple(tasks), *((task,) for task in tasks)]
    if pairs:
        wanted += combinations(tasks, 2)
    if leave_one_out:
        wanted += [tuple(other for other in tasks if other != task) for task in tasks]
    return {group_name(group, tasks): group for group in dict.fromkeys(wanted)}


def group_name(group: Iterable[str], tasks: Sequence[str]) -> str:
    """What a model of some of the tasks is called: ``joint``, ``only-ner``, ``ner+pos``, ``without-topic``."""
    chosen = [task for task in tasks if task in set(group)]
    if len(chosen) == len(tasks):
        return "joint"
    if len(chosen) == 1:
        return f"only-{chosen[0]}"
    missing = [task for task in tasks if task not in chosen]
    return "+".join(chosen) if len(chosen) == 2 else f"without-{'-'.join(missing)}"


@dataclass(frozen=True)
class Budget:
    """What a joint run learns from, as its plan has it: early stopping may end it sooner."""

    rows: Mapping[str, int]
    """``{dataset: rows drawn from it}``, for those that steps learn from."""
    passes: Mapping[str, int]
    """``{dataset: rows in a pass over it}``, classes balanced where they are; 0: nobody knows."""
    sizes: Mapping[str, int]
    """``{dataset: training rows}``; 0: nobody knows."""
    steps: int
    eval_every: int
    scored: frozenset[str]
    """The tasks with labels on validation."""
    held_out: Mapping[str, str | None]
    """``{dataset: the column that its held-out splits are stratified by}``, for those that have such splits."""


def budget(recipe: Recipe, prepared: Prepared, lines: Sequence[Mapping[str, Any]] = ()) -> Budget:
    """The budget of a joint recipe.

    Args:
        lines: its run's ``metrics.jsonl``, which tells the shares that dynamic sampling found.
    """
    data = _replayed(recipe, prepared, lines)
    train: dict[str, Split] = {**prepared.split("train"), **prepared.streams}
    places = {id(split): place for place, split in enumerate(data.splits)}
    drawn = data.sampler.drawn(data.sampler.num_rows)
    names = {name: places[id(split)] for name, split in train.items() if id(split) in places}
    return Budget(
        rows={name: int(drawn[place]) for name, place in names.items()},
        passes={name: int(data.sampler.sizes[place]) for name, place in names.items()},
        sizes={
            name: len(split) if isinstance(split, EncodedSplit) else split.source.num_rows or 0
            for name, split in train.items()
        },
        steps=len(data),
        eval_every=recipe.training.eval_every or steps_per_epoch(recipe, prepared),
        scored=frozenset(scored_tasks(prepared)),
        held_out={
            name: dataset.stratified_by
            for name, dataset in prepared.loaded.items()
            if any(split.held_out_as for split in dataset.splits.values())
        },
    )


def _replayed(recipe: Recipe, prepared: Prepared, lines: Sequence[Mapping[str, Any]]) -> StepDataset:
    """A run's steps, with the shares that dynamic sampling found while it ran."""
    data = steps(recipe, prepared)
    for line in lines:
        if line.get("shares"):
            data.sampler.resample(line["step"], [*line["shares"].values()])
    return data


def measured(recipe: Recipe, prepared: Prepared, num_steps: int) -> tuple[dict[str, Any], str]:
    """The section ``gradients`` of a joint run that measures conflicts, and why it does not (empty: it does)."""
    section = recipe.gradients.model_dump(mode="json")
    if recipe.gradients.strategy != "sum" or recipe.gradients.measure_every is not None:
        return section, ""
    if steps_have_one_task(recipe.to_dict()):
        return section, "each step has one task alone (`sampling: round_robin`)"
    for key in ("compile", "unfreeze_every"):
        if getattr(recipe.training, key):
            return section, f"gradients cannot be told apart with `training.{key}`"
    if recipe.training.frozen_layers and not shared_parameters(new_model(recipe, prepared)):
        return section, "the tasks share nothing that learns"
    return section | {"measure_every": max(1, round(num_steps / MEASURED_STEPS))}, ""


def joint_recipe(recipe: Recipe, seed: int, folder: Path, gradients: Mapping[str, Any]) -> Recipe:
    """The recipe itself with one of several seeds. What is held out stays what it is."""
    split_seed = recipe.seed if recipe.split_seed is None else recipe.split_seed
    changed = {"seed": seed, "split_seed": split_seed, "output_dir": str(folder), "hub": None}
    return Recipe.from_dict(recipe.to_dict() | changed | {"gradients": dict(gradients)})


def part_recipe(
    joint: Recipe, group: Sequence[str], budget: Budget, folder: Path, *, same_steps: bool = False
) -> Recipe:
    """A recipe for some of the joint one's tasks, that draws as many rows of each of their datasets.

    What is counted in steps is scaled to the run's length; what makes no sense for these tasks is left out.

    Args:
        same_steps: in as many steps of fewer rows, rather than in fewer steps of as many; rows a step are whole, so the
            rows of the run differ by up to half a one a step. Where there are fewer rows than steps: in a step a row.
    """
    values = joint.to_dict()
    tasks = {name: spec for name, spec in values["tasks"].items() if name in group}
    read = {dataset for name in tasks for dataset in joint.tasks[name].columns()}
    datasets, passes = {}, {}
    for name, spec in values["datasets"].items():
        if name not in read:
            continue
        passes[name] = budget.passes.get(name, 0)
        for key in ("oversample", "undersample"):
            if spec[key] is not None and spec[key] not in group:
                spec[key], passes[name] = None, budget.sizes.get(name, 0)
        if budget.held_out.get(name) is not None:
            spec["stratify"] = budget.held_out[name]
        datasets[name] = spec
    if len(group) == 1 or not any(spec["loss_weight"] for spec in tasks.values()):
        tasks = {name: spec | {"loss_weight": 1.0} for name, spec in tasks.items()}
    rows = {name: budget.rows.get(name, 0) for name in datasets}
    batch_size, num_rows = joint.training.batch_size, max(1, sum(rows.values()))
    if same_steps:
        batch_size = max(1, round(batch_size * num_rows / sum(budget.rows.values())))
        if num_rows >= budget.steps:
            num_rows = min(max(num_rows, (budget.steps - 1) * batch_size + 1), budget.steps * batch_size)
    num_steps = math.ceil(num_rows / batch_size)
    scale = budget.steps / num_steps
    changed = {"tasks": tasks, "datasets": datasets, "output_dir": str(folder)}
    return Recipe.from_dict(
        values
        | changed
        | {
            "sampling": _sampling(joint, rows, passes, budget),
            "balancing": _balancing(joint, group, scale),
            "gradients": _gradients(joint, group),
            "sharing": _sharing(joint, group),
            "distillation": _distillation(joint, group),
            "consistency": [one for one in values["consistency"] if {*one["tasks"]} <= {*group}],
            "training": _training(joint, group, rows, passes, budget, num_rows, num_steps) | {"batch_size": batch_size},
        }
    )


def _sampling(joint: Recipe, rows: Mapping[str, int], passes: Mapping[str, int], budget: Budget) -> dict[str, Any]:
    same_passes = all(passes[name] == budget.passes.get(name) for name in rows)
    if len(rows) == 1:
        return {"strategy": "proportional" if all(passes.values()) else "uniform"}
    if joint.sampling.strategy == "proportional" and same_passes:
        return {"strategy": "proportional"}
    return {"strategy": "fixed", "shares": dict(rows)}


def _balancing(joint: Recipe, group: Sequence[str], scale: float) -> dict[str, Any]:
    if len(group) == 1:
        return {}
    period = joint.balancing.period
    return joint.balancing.model_dump(mode="json") | {"period": period and max(1, round(period / scale))}


def _gradients(joint: Recipe, group: Sequence[str]) -> dict[str, Any]:
    if len(group) == 1 or joint.gradients.strategy == "sum":
        return {}
    unmeasured: dict[str, Any] = {"measure_every": None, "look_ahead": False, "measured_layers": []}
    return joint.gradients.model_dump(mode="json") | unmeasured


def _sharing(joint: Recipe, group: Sequence[str]) -> dict[str, Any]:
    """How one task reads the encoder stays; what lies between several is nothing where there is one."""
    if len(group) == 1 and joint.sharing.strategy not in ("layer_mix", "lora"):
        return {}
    return joint.sharing.model_dump(mode="json")


def _distillation(joint: Recipe, group: Sequence[str]) -> dict[str, Any] | None:
    """A model of one task learns from labels alone: it is what others are held against."""
    settings = joint.distillation
    if settings is None or len(group) == 1:
        return None
    of_group = {
        key: {task: one for task, one in getattr(settings, key).items() if task in group}
        for key in ("teachers", "revisions")
    }
    if not of_group["teachers"]:
        return None
    numbers = all(KINDS[joint.tasks[task].type].label_set == "none" for task in of_group["teachers"])
    temperature = {"temperature": 1.0} if numbers else {}  # which changes no numbers
    return settings.model_dump(mode="json") | of_group | temperature


def _training(
    joint: Recipe,
    group: Sequence[str],
    rows: Mapping[str, int],
    passes: Mapping[str, int],
    budget: Budget,
    num_rows: int,
    num_steps: int,
) -> dict[str, Any]:
    training = joint.training
    evaluations = math.ceil(budget.steps / budget.eval_every)
    sizes = [passes[name] for name, drawn in rows.items() if drawn]
    epoch = sum(sizes) if all(sizes) else 0
    unfreeze, scale = training.unfreeze_every, budget.steps / num_steps
    weights = {task: weight for task, weight in training.selection_weights.items() if task in group}
    return training.model_dump(mode="json") | {
        "num_epochs": num_rows / epoch if epoch else training.num_epochs,
        "max_steps": None if epoch else num_steps,
        "eval_every": max(1, math.ceil(num_steps / evaluations)),
        "unfreeze_every": unfreeze and max(1, round(unfreeze / scale)),
        "ema_decay": training.ema_decay**scale if training.ema_decay else 0.0,
        "selection_weights": weights if any(weights.values()) else {},
        "early_stopping_patience": training.early_stopping_patience if budget.scored & {*group} else None,
    }


def differences(joint: Recipe, part: Recipe) -> list[dict[str, Any]]:
    """What else than tasks and datasets differs between two recipes: ``key`` and both values."""
    left_out = {f"datasets.{name}" for name in joint.datasets if name not in part.datasets}
    left_out |= {f"tasks.{name}" for name in joint.tasks if name not in part.tasks}
    return [
        {"key": key, "joint": old, "here": new}
        for key, old, new in changed_keys(joint.to_dict(), part.to_dict())
        if key not in left_out and key != "output_dir"
    ]


def planned_rows(recipe: Recipe, prepared: Prepared) -> int:
    """Rows that a run draws from all of its datasets, unless it stops early. ``prepared``: the data of all tasks."""
    return steps(recipe, _of_recipe(recipe, prepared)).sampler.num_rows


def training_tokens(
    recipe: Recipe, prepared: Prepared, lines: Sequence[Mapping[str, Any]], num_steps: int
) -> int | None:
    """Tokens that the first ``num_steps`` steps of a run read, padding not counted; None: it reads a stream.

    Args:
        prepared: the data of all tasks.
        lines: as in :func:`budget`.
    """
    data = _replayed(recipe, _of_recipe(recipe, prepared), lines)
    lengths = [_row_tokens(split, prepared.framing) for split in data.splits if isinstance(split, EncodedSplit)]
    if len(lengths) < len(data.splits):
        return None
    plans = (data.sampler[step] for step in range(num_steps))
    return sum(
        int(lengths[place][plan.rows[plan.datasets == place]].sum())
        for plan in plans
        for place in np.unique(plan.datasets)
    )


def _of_recipe(recipe: Recipe, prepared: Prepared) -> Prepared:
    """What a recipe reads of the data of all tasks."""
    return replace(
        prepared,
        tasks=[task for task in prepared.tasks if task.name in recipe.tasks],
        loaded={name: prepared.loaded[name] for name in recipe.datasets},
        encoded={name: prepared.encoded[name] for name in recipe.datasets},
        streams={name: stream for name, stream in prepared.streams.items() if name in recipe.datasets},
    )


def _row_tokens(split: EncodedSplit, framing: Framing) -> np.ndarray:
    """[rows] Tokens of all windows of each row."""
    tokens = np.zeros(len(split), dtype=np.int64)
    for start in range(0, len(split), _ROWS_AT_ONCE):
        items = read_items(split, range(start, min(start + _ROWS_AT_ONCE, len(split))), (), framing, start)
        np.add.at(tokens, [item.place for item in items], item_lengths(items, framing))
    return tokens
