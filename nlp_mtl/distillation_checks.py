"""What is wrong with a recipe's distillation, which only shows when its keys are held against each other."""

from collections.abc import Iterator
from typing import Any

from nlp_mtl.cleaning_checks import augmentations
from nlp_mtl.errors import Problem, did_you_mean, listed
from nlp_mtl.strategy_checks import is_true, number
from nlp_mtl.task_types import kind_named


def distillation_problems(distillation: Any, tasks: dict[str, Any], datasets: dict[str, Any]) -> Iterator[Problem]:
    """Teachers of no task, and what cannot be learned from one. Reads raw values, whatever they are."""
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
    taught = {name: task for name in teachers if isinstance(task := tasks.get(name), dict)}
    for name, task in taught.items():
        if task.get("decoder") == "crf":
            message = "a chain learns whole sequences, and a teacher says what it thinks of each word: choose another"
            yield Problem(f"tasks.{name}.decoder", f"{message} decoder, or leave `distillation.teachers.{name}` out")
    kinds = [kind_named(task.get("type")) for task in taught.values()]
    are_numbers = bool(kinds) and all(kind is not None and kind.label_set == "none" for kind in kinds)
    if are_numbers and number(distillation.get("temperature", 1)) != 1:
        message = "numbers have no labels whose probabilities it could change: leave it out"
        yield Problem("distillation.temperature", message)
    everywhere = distillation.get("rows") == "all"
    for dataset, spec in datasets.items():
        readers = [task for task in taught.values() if dataset in _datasets(task)]
        if not isinstance(spec, dict) or not (everywhere or readers):
            continue
        if is_true(spec.get("streaming")):
            message = "teachers are asked of all rows before training, and a stream is read as it comes: leave it out"
            yield Problem(f"datasets.{dataset}.streaming", message)
        if changes := augmentations(spec):
            message = "teachers are asked of rows as they are, not as they are changed: leave it out"
            yield Problem(f"datasets.{dataset}.augmentation.{changes[0]}", message)


def _datasets(task: dict[str, Any]) -> list[Any]:
    given = task.get("dataset")
    return given if isinstance(given, list) else [given]
