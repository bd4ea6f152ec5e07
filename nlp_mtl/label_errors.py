"""``nlp-mtl label-errors``: training labels that are likely wrong, found by models that did not see them."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from nlp_mtl.analysis.label_errors import RANKINGS, Ranking, entries, proposed, summary
from nlp_mtl.analysis.label_quality import need_cleanlab
from nlp_mtl.build_data import prepare
from nlp_mtl.errors import DataError, Problem, RecipeError, RunError, RunStopped, did_you_mean, listed
from nlp_mtl.label_error_edits import Edits, taken_out, write_dataset
from nlp_mtl.label_error_folder import (
    REVIEW,
    check_folder,
    check_review,
    search_versions,
    start_folder,
    write_lines,
    write_review,
)
from nlp_mtl.label_error_folds import judged, train_fold
from nlp_mtl.label_error_review import read_review, review_lines, shown_rows
from nlp_mtl.label_error_search import Search, open_search
from nlp_mtl.recipe import Recipe
from nlp_mtl.run_extension import refuse_extension
from nlp_mtl.run_folder import command
from nlp_mtl.storage import held, write_text
from nlp_mtl.training.launcher import launched_accelerator

logger = logging.getLogger(__name__)


def label_errors(
    recipe: Recipe | str | Path,
    *,
    folds: int = 5,
    tasks: Sequence[str] | None = None,
    by: Ranking = "quality",
    share: float | None = None,
    drop: float | None = None,
    review: bool = False,
    apply: str | Path | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Find training labels that are likely wrong; list them, take them out, or have them mended.

    The same call goes on where an earlier one stopped; other ``by``, ``share``, ``drop`` and ``review`` train nothing
    again.

    Args:
        recipe: whose training rows, or the path of its file.
        folds: models that are trained, each without the rows of its fold.
        tasks: whose labels are looked at; default: all that have label sets. The models learn all tasks.
        by: what errors are ranked by: ``quality``, of models that did not see them; ``confidence``, of a model that
            learned from them, over its training; ``both``, the mean.
        share: how many of each task's labels are listed, the likeliest errors first; default: as many as cleanlab
            takes for errors.
        drop: take this share of each task's labels out, the likeliest errors, and write the dataset without them.
        review: write ``review.jsonl``, in which a person mends what is listed.
        apply: such a file, edited: write the dataset with its labels. Nothing is trained.
        output_dir: the folder of the search; default: the recipe's ``output_dir`` with ``-label-errors``.
        overwrite: remove what an earlier search left there, but a ``review.jsonl``.

    Returns:
        the folder, and (on the main process) what its ``report.json`` holds, with ``errors``, the lines of
        ``label_errors.jsonl``, and ``written``, what :func:`nlp_mtl.label_error_edits.write_dataset` tells, or None.
        With ``apply`` it is ``written`` alone.

    Raises:
        MissingExtraError: cleanlab or datasketch is not installed.
        RunStopped: the process was sent SIGTERM while it trained; a checkpoint was written.
        NlpMtlError: of the kind that fits; nothing that was written before is lost.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_yaml(recipe)
    _check_arguments(folds, by, share, drop, review, apply, overwrite)
    refuse_extension(recipe)
    if recipe.meta is not None:
        message = "a run that learns from episodes keeps no heads, so nobody can be asked for labels: leave it out"
        raise RecipeError([Problem("meta", message)])
    wanted = _tasks_of(recipe, tasks)
    if drop is not None or review:
        _check_columns(recipe, wanted, drop)
    if apply is None:
        need_cleanlab()
    folder = Path(output_dir or f"{recipe.output_dir.rstrip('/')}-label-errors").expanduser().absolute()
    accelerator = launched_accelerator(recipe.training.mixed_precision)
    flags = {"folds": folds, "tasks": wanted}
    check_folder(folder, recipe, None if apply is not None else flags, overwrite)
    if review:
        check_review(folder, overwrite)
    accelerator.wait_for_everyone()  # all have seen what is there
    report: dict[str, Any] = {}
    with held(folder) if accelerator.is_main_process else nullcontext():
        if apply is not None:
            if accelerator.is_main_process:
                report = {"written": _applied(recipe, folder, Path(apply).expanduser())}
            accelerator.wait_for_everyone()
            return folder, report
        anew = overwrite or not (folder / "recipe.yaml").is_file()
        accelerator.wait_for_everyone()  # all have seen it
        start = partial(start_folder, folder, recipe, flags, overwrite)
        search = open_search(
            recipe, folder, wanted, folds, accelerator, anew=anew, start=start, is_written=drop is not None or review
        )
        for key in ("distillation", "compression"):
            if getattr(recipe, key) is not None:
                logger.info("Without `%s`: its models may have learned the labels that are looked at", key)
        for number in range(folds):
            _train(search, number)
        if accelerator.is_main_process:
            report = _told(search, by, share, drop, review)
        accelerator.wait_for_everyone()
    return folder, report


def _check_arguments(
    folds: int, by: str, share: float | None, drop: float | None, review: bool, apply: Any, overwrite: bool
) -> None:
    if folds < 2:
        raise RunError(f"{folds} folds were asked for; at least two are needed")
    if by not in RANKINGS:
        raise RunError(f"errors cannot be ranked by {by!r}, but by {listed(RANKINGS)}.{did_you_mean(by, RANKINGS)}")
    for name, value in (("share", share), ("drop", drop)):
        if value is not None and not 0 < value < 1:
            raise RunError(f"{name} is {value:g}; it is a share of a task's labels, between 0 and 1: 0.02 is 2%")
    if sum((drop is not None, review, apply is not None)) > 1:
        raise RunError("drop, review and apply exclude each other: each is a way to have a dataset with fewer errors")
    if apply is not None and overwrite:
        raise RunError("apply and overwrite exclude each other: what is applied is of the search that is there")


def _tasks_of(recipe: Recipe, tasks: Sequence[str] | None) -> list[str]:
    """The tasks whose labels are looked at, in the recipe's order.

    Raises:
        DataError: one is not there, or its labels cannot be looked at.
    """
    unknown = [name for name in tasks or () if name not in recipe.tasks]
    if unknown:
        near = did_you_mean(unknown[0], recipe.tasks)
        raise DataError(f"the recipe has no task {listed(unknown)}; it has {listed(recipe.tasks)}.{near}")
    numbers = [name for name, spec in recipe.tasks.items() if spec.type == "regression"]
    chosen = [name for name in recipe.tasks if name in tasks] if tasks else [*recipe.tasks]
    found = [name for name in chosen if name not in numbers]
    if not found or (tasks and len(found) < len(chosen)):
        refused = [name for name in chosen if name in numbers]
        raise DataError(
            f"{listed(refused)}: label errors are looked for among classes; numbers (regression) are never quite "
            "right, and nothing tells how many are wrong"
        )
    if len(found) < len(chosen):
        logger.info("%s: numbers (regression) are not looked at", listed(name for name in chosen if name in numbers))
    return found


def _check_columns(recipe: Recipe, wanted: Sequence[str], drop: float | None) -> None:
    """Tell where a label cannot be changed for one task alone.

    Raises:
        DataError: labels are to be dropped there, each task's own.
    """
    readers: dict[tuple[str, str], list[str]] = {}
    for task, spec in recipe.tasks.items():
        for place in spec.columns().items():
            readers.setdefault(place, []).append(task)
    for (dataset, column), tasks in readers.items():
        if len(tasks) == 1 or not {*tasks} & {*wanted}:
            continue
        told = f"dataset `{dataset}`: the tasks {listed(tasks)} read the column `{column}`, so"
        if drop is not None:
            raise DataError(
                f"{told} a label that is taken from one of them is taken from all, and each has errors of its own. "
                "Copy the column in the data, so that each reads its own, look at other tasks (--task), or mend what "
                "is found for all of them alike (--review)"
            )
        logger.warning("%s what is mended for one of them has to be mended for all, in lines of their own", told)


def _train(search: Search, number: int) -> None:
    held_out = sum(int((fold == number).sum()) for fold in search.folds.values())
    before = ", done before" if search.is_done(number) else ""
    logger.info("Fold %d of %d: %d rows are held out%s", number + 1, search.count, held_out, before)
    try:
        train_fold(search, number)
    except RunStopped as error:
        message = f"fold {number + 1}: {error} (the same command goes on there)"
        raise RunStopped(message, error.by_hand) from error


def _told(search: Search, by: Ranking, share: float | None, drop: float | None, review: bool) -> dict[str, Any]:
    """Write what the folds say, and what was asked to be made of it; returns the report."""
    prepared, edits = search.prepared, Edits()
    found, points = judged(search)
    of_tasks: dict[str, Any] = {}
    lines, reviewed = list[_Scored](), list[_Scored]()
    for one in found:
        estimated = one.estimated()
        gone = 0 if drop is None else one.share(drop)
        count = max(estimated if share is None else one.share(share), gone)
        worst = one.worst(by, count)
        proposals, scores = proposed(one, worst), one.scores(by)
        rows = shown_rows(prepared, [one.row_of(place) for place in worst])
        lines += zip(scores[worst].tolist(), entries(one, worst, proposals, rows), strict=True)
        of_tasks[one.task.name] = summary(one, estimated, worst, proposals)
        _warn(one.task.name, of_tasks[one.task.name])
        if gone:
            taken_out(prepared, one, worst[:gone], edits)
        if review:
            reviewed += review_lines(one, worst, proposals, scores, rows)
    report = {
        "folds": search.count,
        "by": by,
        "tasks": of_tasks,
        "points": points,
        "versions": search_versions(),
        "command": command(),
    }
    errors = _sorted(lines)
    write_lines(search.folder / "label_errors.jsonl", errors)
    write_text(search.folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if review:
        write_review(search.folder / REVIEW, _sorted(reviewed))
    written = None
    if drop is not None:
        written = write_dataset(search.folder / "dropped", search.recipe, prepared, edits, "dropped")
    return {**report, "errors": errors, "written": written}


def _warn(task: str, told: Mapping[str, Any]) -> None:
    """Tell where models have learned too little to be listened to."""
    if told["agreement"] <= told["most_frequent"]:
        logger.warning(
            "Task `%s`: models that did not see the labels would answer %.1f%% of them, the most frequent one alone "
            "is %.1f%%: they have learned too little to tell errors. Train longer, or on more rows",
            task, 100 * told["agreement"], 100 * told["most_frequent"],
        )  # fmt: skip


_Scored = tuple[float, dict[str, Any]]


def _sorted(lines: Sequence[_Scored]) -> list[dict[str, Any]]:
    """The worst first; equals as they came."""
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def _applied(recipe: Recipe, folder: Path, file: Path) -> dict[str, Any]:
    """The dataset with the labels of an edited review.

    Raises:
        DataError: the file cannot be taken in, or changes nothing.
    """
    prepared = prepare(recipe, splits=("train",))
    edits = read_review(file, prepared)
    if not edits:
        raise DataError(f"{file}: `label` is as `given` on all lines, so there is nothing to write")
    return write_dataset(folder / "reviewed", recipe, prepared, edits, "reviewed")
