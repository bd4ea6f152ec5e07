"""From a recipe's ``distillation`` to what teachers say of the training rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from accelerate import Accelerator

from nlp_mtl.build_data import Prepared
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.encoding import encode_split
from nlp_mtl.data.items import frame
from nlp_mtl.data.soft_targets import Teaching
from nlp_mtl.errors import NlpMtlError, Problem, RecipeError, listed
from nlp_mtl.inference.teaching import with_soft_targets
from nlp_mtl.models.checksum import answers_checksum
from nlp_mtl.models.encoder import trained_config
from nlp_mtl.models.loading import load_model
from nlp_mtl.recipe import Recipe
from nlp_mtl.tasks import Task


def teaching(recipe: Recipe) -> Teaching | None:
    """How tasks learn from teachers; None: there are none."""
    settings, extension = recipe.distillation, recipe.extension
    if settings is not None:
        return Teaching(settings.weight, settings.annealing, settings.temperature)
    if extension is not None and extension.distilled:
        return Teaching(extension.teacher_weight, annealing=False, temperature=extension.temperature)
    return None


def taught(recipe: Recipe, prepared: Prepared, accelerator: Accelerator) -> Prepared:
    """With what the teachers say of the training rows. Each is asked once; later runs read its answers from the cache.

    Raises:
        RecipeError: teachers cannot be loaded, or do not fit their tasks.
    """
    settings = recipe.distillation
    if settings is None:
        return prepared
    check_teachers(recipe, prepared.tasks)  # before any is asked, which may take long
    encoded = dict(prepared.encoded)
    for (path, revision), tasks in _students(recipe, prepared.tasks).items():
        encoded = _with_answers(recipe, replace(prepared, encoded=encoded), path, revision, tasks, accelerator)
    return replace(prepared, encoded=encoded)


def _with_answers(
    recipe: Recipe, prepared: Prepared, path: str, revision: str | None, tasks: Sequence[Task], accelerator: Accelerator
) -> dict[str, dict[str, EncodedSplit]]:
    """The encoded splits with what one teacher says; when this returns, its memory is free again."""
    settings = recipe.distillation
    assert settings is not None
    encoded = dict(prepared.encoded)
    model, tokenizer = load_model(path, revision=revision)
    framing = frame(tokenizer, model.config.max_length, model.config.window_overlap)
    teacher_id = answers_checksum(model, tokenizer)
    model.to(accelerator.device)
    for name, split in prepared.split("train").items():
        pairs = bool(recipe.datasets[name].text_pair)
        asked = [task for task in tasks if _learns(task, split, settings.rows, pairs)]
        if not asked or not recipe.draws_from(name):
            continue
        # The same rows, of which an extension may have chosen some.
        loaded = replace(prepared.loaded[name], splits={"train": split.source})
        found = with_soft_targets(
            split,
            encode_split(loaded, "train", [], tokenizer, recipe.word_splitter, recipe.num_proc),
            model,
            framing,
            asked,
            teacher_id=teacher_id,
            beyond_labels=settings.rows == "all",
            mixed_precision=recipe.training.mixed_precision,
            max_tokens=max(recipe.training.max_tokens, framing.max_length),
            title=f"{listed([task.name for task in asked])} on {name}",
        )
        encoded[name] = {**encoded[name], "train": found}
    return encoded


def _learns(task: Task, split: EncodedSplit, rows: str, has_pairs: bool) -> bool:
    """Whether a task learns from its teacher in a split."""
    return task.name in split.tasks or (rows == "all" and task.pairs == has_pairs)


def _students(recipe: Recipe, tasks: Sequence[Task]) -> dict[tuple[str, str | None], list[Task]]:
    """``{(model, revision): the tasks that learn from it}``"""
    settings = recipe.distillation
    students: dict[tuple[str, str | None], list[Task]] = {}
    if settings is None:
        return students
    for task in tasks:
        if task.name in settings.teachers:
            students.setdefault((settings.teachers[task.name], settings.revisions.get(task.name)), []).append(task)
    return students


def check_teachers(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """That the teachers of a recipe fit its tasks, by their configurations.

    Raises:
        RecipeError: with all that do not, or cannot be loaded.
    """
    problems = []
    for (path, revision), of_model in _students(recipe, tasks).items():
        try:
            config = trained_config(path, revision)
        except NlpMtlError as error:
            why = str(error).removeprefix(f"encoder `{path}`: ").removeprefix("encoder ")
            problems += [Problem(f"distillation.teachers.{task.name}", f"`{path}`: {why}") for task in of_model]
            continue
        if config is None:
            message = f"`{path}` is a stock model, without tasks of its own: a teacher is one that nlp_mtl trained"
            problems += [Problem(f"distillation.teachers.{task.name}", message) for task in of_model]
            continue
        theirs = {task.name: task for task in config.task_list()}
        whys = {task.name: _misfit(task, theirs) for task in of_model}
        problems += [Problem(f"distillation.teachers.{name}", f"`{path}` {why}") for name, why in whys.items() if why]
    if problems:
        raise RecipeError(problems)


def _misfit(task: Task, theirs: Mapping[str, Task]) -> str:
    """Why a teacher with certain tasks cannot teach one; empty: it can."""
    other = theirs.get(task.name)
    if other is None:
        return f"has no task `{task.name}`; it has {listed(theirs)}"
    if other.type != task.type:
        return f"has a {other.type} task of that name, and the recipe's is {task.type}"
    if other.pairs != task.pairs:
        read, held = ("pairs of texts", "single texts") if other.pairs else ("single texts", "pairs of texts")
        return f"reads {read}, and the recipe's datasets hold {held}"
    if {*other.labels} != {*task.labels}:
        lacking = [label for label in task.labels if label not in other.labels]
        more = [label for label in other.labels if label not in task.labels]
        found = [f"lacks the labels {listed(lacking)}"] * bool(lacking) + [f"has the labels {listed(more)}"] * bool(
            more
        )
        rest = ", which the recipe's task has not" if more else ", which the recipe's task has"
        return f"{' and '.join(found)}{rest}: `tasks.{task.name}.label_names` says which there are"
    return ""
