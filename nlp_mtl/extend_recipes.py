"""From a trained model and a recipe of more tasks to the recipe of a model that has both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlp_mtl.build_cleaning import model_cleaning
from nlp_mtl.build_consistency import known_pairs
from nlp_mtl.build_data import window_problems
from nlp_mtl.build_extension import Base, load_base
from nlp_mtl.errors import Problem, RecipeError, did_you_mean, listed
from nlp_mtl.extend_data import (
    Values,
    name_problems,
    old_datasets,
    old_splits,
    row_by_row_problems,
    row_problems,
    share_of,
    share_problems,
)
from nlp_mtl.extension_checks import against_forgetting
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_reading import read_yaml, validate, without_nulls
from nlp_mtl.strategy_checks import is_true, read_by
from nlp_mtl.task_types import kind_of


def read_extension(
    model: str | Path,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    revision: str | None = None,
) -> tuple[Base, Recipe]:
    """A trained model, and the recipe of a model that has its tasks and those of a recipe.

    What is kept is the model's; the tasks that the recipe does not name, and the datasets that they alone read, come
    from the recipe beside the model; all else is the recipe's.

    Args:
        model: a run folder, a model folder or a Hub id.
        recipe: the path of a file, plain values, or a recipe, of which only what was said to it counts.
        overrides: of a file's keys, ``key.key=value``.
        revision: of a model on the Hub.

    Raises:
        RecipeError: with all problems, also of what the recipe says otherwise than the trained model.
        ModelError: the model cannot be loaded.
    """
    values: Any
    if isinstance(recipe, str | Path):
        values, problems, source = read_yaml(Path(recipe), overrides)
    else:
        values = recipe.model_dump(mode="json", exclude_unset=True) if isinstance(recipe, Recipe) else dict(recipe)
        problems, source = [], "the recipe"
    base = load_base(model, revision)
    if not isinstance(values, dict) or not isinstance(values.get("extension") or {}, dict):
        return base, validate(Recipe, values, problems, source)  # which tells what is wrong
    values, problems = _extended(base, without_nulls(Recipe, values), problems)
    found = validate(Recipe, values, problems, source)
    if problems := [*window_problems(found, base.model.config.max_length), *_later_problems(base, found)]:
        raise RecipeError(problems, source)
    return base, found


def _later_problems(base: Base, recipe: Recipe) -> list[Problem]:
    """What only a recipe that is otherwise sound shows."""
    config, extension = base.model.config, recipe.extension
    kept = (
        ("sharing", recipe.sharing.settings(), config.sharing),
        ("cleaning", model_cleaning(recipe).to_dict(), config.cleaning),
    )
    problems = [_otherwise(key, said, own) for key, said, own in kept if (said or {}) != (own or {})]
    problems += [
        Problem(f"tasks.{task.name}.init_from", "the trained model has a head for it already; leave it out")
        for task in base.tasks if task.name in recipe.tasks and recipe.tasks[task.name].init_from is not None
    ]  # fmt: skip
    for task in base.tasks:
        decoder = recipe.tasks[task.name].decoder if task.name in recipe.tasks else None
        if decoder is not None and "crf" in (decoder, task.decoder) and decoder != task.decoder:
            problems.append(_otherwise(f"tasks.{task.name}.decoder", decoder, task.decoder))
    distilled = [task for task in base.tasks if extension is not None and task.name in extension.distilled]
    unscaled = [task.name for task in distilled if kind_of(task).guess_loss is None]
    if recipe.balancing.scale == "log_classes" and unscaled:
        message = f"what guessing loses follows from labels, and {listed(unscaled)} has numbers: leave it out"
        problems.append(Problem("balancing.scale", message))
    if not any(recipe.tasks[name].loss_weight for name in recipe.learned_tasks):
        problems.append(Problem("tasks", "every loss_weight is 0, so there is nothing to learn"))
    return problems


def _extended(base: Base, values: Values, problems: Sequence[Problem]) -> tuple[Values, list[Problem]]:
    """The values of the recipe of both, and all problems so far."""
    kept = _kept(base)
    problems = [*problems, *_kept_problems(values, kept)]
    values = {**values, **{key: own for key, own in kept.items() if key not in _SECTIONS or values.get(key) is None}}
    tasks, datasets, sampling, training, extension = (
        dict(part) if isinstance(part := values.get(key), dict) else {}
        for key in ("tasks", "datasets", "sampling", "training", "extension")
    )
    problems += [
        Problem(f"extension.{key}", "`nlp-mtl extend` says it by itself: leave it out")
        for key in ("model", "revision", "old_splits") if extension.get(key) not in (None, {})
    ]  # fmt: skip
    if extension.get("freeze") is None:
        extension["freeze"] = "nothing" if against_forgetting(extension, training) else "model"
    old, old_problems = _old_tasks(base, tasks, extension.get("old_tasks"))
    distilled, distillation_problems = _distilled(base, tasks, extension.get("distillation", False))
    read = old_datasets(base, old, extension.get("data_dir"))
    read_by_new = {str(name) for spec in tasks.values() if isinstance(spec, dict) for name in read_by(spec)}
    alone = {name: spec for name, spec in read.items() if name not in read_by_new}
    replay, fisher = extension.get("replay"), extension.get("importance") == "fisher"
    problems += [
        *old_problems,
        *distillation_problems,
        *name_problems(read, datasets, values.get("data_dir", ".")),
        *(row_problems(base, "replay", replay, read, alone) if replay is not None else []),
        *(row_problems(base, "importance", "fisher", read, read) if fisher else []),
        *share_problems(sampling, extension, alone),
        *_teacher_problems(values.get("distillation"), extension, old),
    ]
    if tasks:  # else there is nothing to learn, which is told elsewhere
        in_order = [task.name for task in base.tasks if task.name in {*tasks, *old}]
        values["tasks"] = {
            name: tasks[name] if name in tasks else _old_task(base, name) for name in [*in_order, *tasks]
        }
        pairs = values.get("consistency")
        if pairs is None or isinstance(pairs, list):
            values["consistency"] = [*known_pairs(base.model.config, values["tasks"]), *(pairs or [])]
    if values.get("datasets") is None or datasets:
        values["datasets"] = {**read, **datasets}
    shares = sampling.get("shares") or {}
    if sampling.get("strategy") == "fixed" and extension.get("replay") is None and isinstance(shares, dict):
        values["sampling"] = {**sampling, "shares": {**dict.fromkeys(alone, 0), **shares}}
    if distilled:
        drawn = [name for name in read if name in read_by_new or replay is not None]
        asked = {name: spec for name, spec in {**read, **datasets}.items() if name in drawn or name in datasets}
        problems += row_by_row_problems(
            {name: spec for name, spec in asked.items() if share_of(sampling, name)}, datasets
        )
        extension["distillation"] = distilled
    given: Values = {"model": base.path, "revision": base.revision}
    if isinstance(extension.get("old_tasks") or [], list):  # what is none is told elsewhere
        given["old_tasks"] = old
    values["extension"] = {**extension, **given, "old_splits": old_splits(base, read, datasets)}
    return values, problems


_SECTIONS = ("cleaning", "sharing")
"""What is kept and is said by several keys: it is compared when these are checked."""


def _kept(base: Base) -> Values:
    """What stays as the model has it, as a recipe says it."""
    config = base.model.config
    encoder, revision = config.encoder_config.name_or_path or base.path, None
    if base.recipe is not None:
        encoder, revision = base.recipe.encoder, base.recipe.encoder_revision
    return {
        "encoder": encoder,
        "encoder_revision": revision,
        "word_splitter": config.word_splitter,
        "max_length": config.max_length,
        "window_overlap": config.window_overlap,
        "cleaning": config.cleaning or {},
        "sharing": config.sharing or {"strategy": "hard"},
    }


def _kept_problems(values: Values, kept: Values) -> list[Problem]:
    """What a recipe says otherwise than the trained model, which stays as it is."""
    said = {key: values[key] for key in kept if key not in _SECTIONS and values.get(key) is not None}
    if "encoder" in said:
        paths = [Path(str(one)).expanduser() for one in (said["encoder"], kept["encoder"])]
        if all(path.is_dir() for path in paths) and paths[0].samefile(paths[1]):
            del said["encoder"]
    return [_otherwise(key, one, kept[key]) for key, one in said.items() if str(one) != str(kept[key])]


def _otherwise(key: str, said: Any, own: Any) -> Problem:
    told = [f"{one!r:.100}" if one else "nothing" for one in (said, own)]
    return Problem(key, f"found {told[0]}, but the trained model has {told[1]}, which it keeps: leave it out")


def _old_tasks(base: Base, named: Values, wanted: Any) -> tuple[list[str], list[Problem]]:
    """The tasks whose data are read as the recipe beside the model says."""
    known = [task.name for task in base.tasks if base.recipe is not None and task.name in base.recipe.tasks]
    if not isinstance(wanted, list):  # what is no list is told elsewhere
        return [name for name in known if name not in named], []
    problems = []
    for name in map(str, wanted):
        if name in named:
            message = f"`{name}` goes on learning, as the recipe names it among its tasks; leave it out of one of both"
            problems.append(Problem("extension.old_tasks", message))
        elif name not in known:
            there = f"the recipe beside {base.path} has the tasks {listed(known)}"
            if base.recipe is None:
                there = f"there is no recipe beside {base.path}, so where its data lie is not known: give a run folder"
            near = did_you_mean(str(name), known)
            problems.append(Problem("extension.old_tasks", f"`{name}` is not known; {there}.{near}"))
    return [name for name in known if name in wanted and name not in named], problems


def _distilled(base: Base, named: Values, wanted: Any) -> tuple[list[str], list[Problem]]:
    """The tasks that learn from the old model. Their data need not be known."""
    there = {task.name: task for task in base.tasks if task.name not in named}
    if isinstance(wanted, list):
        names = [*map(str, wanted)]
    elif is_true(wanted):
        names = [*there]
    else:
        return [], []
    problems, key = [], "extension.distillation"
    if not names:
        problems.append(Problem(key, "the recipe names all of the model's tasks itself, so none is left: leave it out"))
    for name in names:
        if name in named:
            problems.append(Problem(key, f"`{name}` goes on learning, as the recipe names it: leave one of both out"))
        elif name not in there:
            near = did_you_mean(name, there)
            problems.append(
                Problem(key, f"the model has no task `{name}`; it has {listed(base.model.task_names)}.{near}")
            )
        elif there[name].decoder == "crf":
            message = (
                f"`{name}` has the decoder crf, which learns whole sequences, and the old model says what it thinks of "
                "each word: name the others, `distillation: [...]`"
            )
            problems.append(Problem(key, message))
    return [name for name in there if name in names], problems


def _teacher_problems(distillation: Any, extension: Values, old: Sequence[str]) -> list[Problem]:
    """Teachers of tasks that learn nothing."""
    teachers = distillation.get("teachers") if isinstance(distillation, dict) else None
    named = [name for name in (teachers if isinstance(teachers, dict) else {}) if name in old]
    message = (
        "an old task learns where it is replayed (`extension.replay`), or of the old model (`extension.distillation`): "
        "give one of these, or leave this out"
    )
    return [Problem(f"distillation.teachers.{name}", message) for name in named if extension.get("replay") is None]


def _old_task(base: Base, name: str) -> Values:
    """What the recipe beside the model says of a task, whose head is there already."""
    assert base.recipe is not None
    return {**base.recipe.tasks[name].model_dump(mode="json"), "init_from": None, "init_from_revision": None}
