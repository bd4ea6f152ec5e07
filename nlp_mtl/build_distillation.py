"""From a recipe's ``distillation`` to what teachers say of the training rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from nlp_mtl.build_data import Prepared
from nlp_mtl.data.encoding import EncodedSplit, encode_split
from nlp_mtl.data.items import frame
from nlp_mtl.data.soft_targets import Teaching
from nlp_mtl.errors import ModelError, Problem, RecipeError, listed
from nlp_mtl.inference.teaching import checksum, with_soft_targets
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.tasks import Task

Teacher = tuple[MultiTaskModel, PreTrainedTokenizerBase, list[Task], list[Problem]]
"""A model, its tokenizer, the tasks of the student that learn from it, and why it cannot teach some of them."""


def teaching(recipe: Recipe) -> Teaching | None:
    """How tasks learn from teachers; None: there are none."""
    settings = recipe.distillation
    return None if settings is None else Teaching(settings.weight, settings.annealing, settings.temperature)


def taught(recipe: Recipe, prepared: Prepared, accelerator: Accelerator) -> Prepared:
    """With what the teachers say of the training rows. Each is asked once; later runs read its answers from the cache.

    Raises:
        RecipeError: a teacher does not fit its task.
        ModelError: it cannot be loaded.
    """
    settings = recipe.distillation
    if settings is None:
        return prepared
    encoded = dict(prepared.encoded)
    drawn = {name: splits["train"] for name, splits in encoded.items()
             if "train" in splits and recipe.sampling.shares.get(name, 1)}  # fmt: skip
    problems: list[Problem] = []
    for model, tokenizer, tasks, misfits in _teachers(recipe, prepared.tasks):
        problems += misfits
        if problems:  # nothing is trained; the others are still looked at
            continue
        framing = frame(tokenizer, model.config.max_length, model.config.window_overlap)
        teacher_id = checksum(model, tokenizer)
        model.to(accelerator.device)
        for name in drawn:
            loaded, split = prepared.loaded[name], encoded[name]["train"]
            asked = [
                task for task in tasks if _learns(task, split, settings.rows, bool(recipe.datasets[name].text_pair))
            ]
            if not asked:
                continue
            encoded[name] = {
                **encoded[name],
                "train": with_soft_targets(
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
                ),
            }
    if problems:
        raise RecipeError(problems)
    return replace(prepared, encoded=encoded)


def _learns(task: Task, split: EncodedSplit, rows: str, has_pairs: bool) -> bool:
    """Whether a task learns from its teacher in a split."""
    return task.name in split.tasks or (rows == "all" and task.pairs == has_pairs)


def check_teachers(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """That the teachers of a recipe fit its tasks.

    Raises:
        RecipeError: with all that do not.
        ModelError: one cannot be loaded.
    """
    if problems := [problem for *_, misfits in _teachers(recipe, tasks) for problem in misfits]:
        raise RecipeError(problems)


def _teachers(recipe: Recipe, tasks: Sequence[Task]) -> Iterator[Teacher]:
    """The teachers of a recipe, loaded one after the other: memory is for one."""
    settings = recipe.distillation
    if settings is None:
        return
    students: dict[tuple[str, str | None], list[Task]] = {}
    for task in tasks:
        if task.name in settings.teachers:
            students.setdefault((settings.teachers[task.name], settings.revisions.get(task.name)), []).append(task)
    for (path, revision), of_model in students.items():
        try:
            model, tokenizer = load_model(path, revision=revision)
        except ModelError as error:
            raise ModelError(f"distillation.teachers: {error}") from error
        theirs = {task.name: task for task in model.config.task_list()}
        whys = {task.name: _misfit(task, theirs) for task in of_model}
        misfits = [Problem(f"distillation.teachers.{name}", f"`{path}` {why}") for name, why in whys.items() if why]
        yield model, tokenizer, of_model, misfits


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
