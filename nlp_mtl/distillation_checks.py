"""What is wrong with a recipe's distillation, which only shows when its keys are held against each other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlp_mtl.cleaning_checks import augmentations
from nlp_mtl.errors import Problem, did_you_mean, listed
from nlp_mtl.extension_checks import distils
from nlp_mtl.strategy_checks import is_true, number, only_scored, read_by
from nlp_mtl.task_types import kind_named


def distillation_problems(
    values: dict[str, Any], tasks: dict[str, Any], datasets: dict[str, Any], drawn: dict[str, Any]
) -> Iterator[Problem]:
    """Teachers of no task, and what cannot be learned from one. Reads raw values, whatever they are.

    ``drawn``: of the datasets, those that are not for evaluation alone.
    """
    distillation = values.get("distillation")
    if not isinstance(distillation, dict):
        return
    teachers, revisions = (
        {str(key): one for key, one in given.items()} if isinstance(given := distillation.get(section), dict) else {}
        for section in ("teachers", "revisions")
    )
    for name in teachers:
        if name not in tasks:
            message = f"there is no such task; there are {listed(tasks)}.{did_you_mean(name, map(str, tasks))}"
            yield Problem(f"distillation.teachers.{name}", message)
    for name in revisions:
        if name not in teachers:
            yield Problem(f"distillation.revisions.{name}", "the task has no teacher that it could be a revision of")
    yield from _own_teachers(teachers, values.get("output_dir"))
    taught = {name: task for name in teachers if isinstance(task := tasks.get(name), dict)}
    alone = distillation.get("annealing") is False and number(distillation.get("weight", 1)) == 1
    for name, task in taught.items():
        yield from _student_problems(name, task, alone)
    kinds = [kind_named(task.get("type")) for task in taught.values()]
    are_numbers = bool(kinds) and all(kind is not None and kind.label_set == "none" for kind in kinds)
    if are_numbers and number(distillation.get("temperature", 1)) != 1:
        message = "numbers have no labels whose probabilities it could change: leave it out"
        yield Problem("distillation.temperature", message)
    sampling = values.get("sampling")
    shares = sampling.get("shares") if isinstance(sampling, dict) else None
    shares = shares if isinstance(shares, dict) else {}
    for name, spec in drawn.items():
        if isinstance(spec, dict) and number(shares.get(name, 1)) != 0:
            asked = any(_is_asked(task, name, distillation, datasets) for task in taught.values())
            yield from _dataset_problems(f"datasets.{name}", spec) if asked else ()


def _is_asked(task: dict[str, Any], dataset: str, distillation: dict[str, Any], datasets: dict[str, Any]) -> bool:
    """Whether a task that has a teacher learns from it on a dataset's rows."""
    if dataset in read_by(task):
        return True
    return distillation.get("rows") == "all" and _reads_pairs(task, datasets) == bool(
        datasets[dataset].get("text_pair")
    )


def steps_have_one_task(values: dict[str, Any]) -> bool:
    """Whether each step learns from one task alone. Reads raw values, whatever they are."""
    sampling, distillation, extension, tasks, datasets = (
        section if isinstance(section := values.get(key), dict) else {}
        for key in ("sampling", "distillation", "extension", "tasks", "datasets")
    )
    if sampling.get("strategy") != "round_robin" or distils(extension):  # old tasks learn on all rows
        return False
    old, _ = only_scored(values)
    teachers = distillation.get("teachers")
    taught = {str(name) for name in teachers} if isinstance(teachers, dict) else set()
    for dataset, spec in datasets.items():
        learned = [
            name for name, task in tasks.items()
            if isinstance(task, dict) and name not in old and (
                dataset in read_by(task)
                or (name in taught and isinstance(spec, dict) and _is_asked(task, dataset, distillation, datasets))
            )
        ]  # fmt: skip
        if len(learned) > 1:
            return False
    return True


def _own_teachers(teachers: dict[str, Any], output_dir: Any) -> Iterator[Problem]:
    """Teachers that the run would write over."""
    for name, model in teachers.items():
        if lies_in(model, output_dir):
            yield Problem(f"distillation.teachers.{name}", LIES_IN)


LIES_IN = "it lies in `output_dir`, where this run writes: use another"


def lies_in(model: Any, output_dir: Any) -> bool:
    """Whether a model, if it is a folder's, is in the run's. Reads raw values, whatever they are."""
    if not all(isinstance(one, str) and "\0" not in one for one in (model, output_dir)):
        return False
    folder, run = (Path(os.path.expanduser(one)).resolve() for one in (model, output_dir))
    return run in (folder, *folder.parents)


def _student_problems(name: str, task: dict[str, Any], alone: bool) -> Iterator[Problem]:
    """``alone``: labels that have a teacher beside them count nothing."""
    if task.get("decoder") == "crf":
        message = "a chain learns whole sequences, and a teacher says what it thinks of each word: choose another"
        yield Problem(f"tasks.{name}.decoder", f"{message} decoder, or leave `distillation.teachers.{name}` out")
    if number(task.get("loss_weight", 1)) == 0:
        message = "a task that does not count learns nothing from its teacher: leave one of both out"
        yield Problem(f"tasks.{name}.loss_weight", message)
    for key in ("class_weights", "focal_gamma", "label_smoothing"):
        if alone and (bool(task.get(key)) if key == "class_weights" else number(task.get(key, 0)) > 0):
            message = (
                "it changes the loss of labels, which count nothing beside a teacher with `weight: 1` that does not"
            )
            yield Problem(f"tasks.{name}.{key}", f"{message} step back (`annealing: false`)")


def _dataset_problems(path: str, spec: dict[str, Any]) -> Iterator[Problem]:
    """Of a dataset whose rows teachers are asked of."""
    if is_true(spec.get("streaming")):
        message = "teachers are asked of all rows before training, and a stream is read as it comes: leave it out"
        yield Problem(f"{path}.streaming", message)
    if changes := augmentations(spec):
        message = "teachers are asked of rows as they are, not as they are changed: leave it out"
        yield Problem(f"{path}.augmentation.{changes[0]}", message)


def _reads_pairs(task: dict[str, Any], datasets: dict[str, Any]) -> bool:
    specs = [spec for name in read_by(task) if isinstance(spec := datasets.get(name), dict)]
    return any(bool(spec.get("text_pair")) for spec in specs)
