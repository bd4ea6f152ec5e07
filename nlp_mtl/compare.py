"""``nlp-mtl compare``: a joint model against a model a task, on the same rows at the same budget, over seeds."""

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nlp_mtl.analysis.comparison import FinishedRun
from nlp_mtl.analysis.comparison_page import page
from nlp_mtl.analysis.comparison_plots import draw_comparison
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.compare_answers import kept_answers, rows_digest
from nlp_mtl.compare_recipes import Budget, budget, groups, joint_recipe, measured, part_recipe
from nlp_mtl.compare_report import Asked, comparison_report
from nlp_mtl.errors import DataError, Problem, RecipeError, RunError, RunStopped, listed
from nlp_mtl.recipe import Recipe
from nlp_mtl.run import train
from nlp_mtl.run_extension import refuse_extension
from nlp_mtl.run_folder import check_folder, command, learned_changes, saved_recipe, versions
from nlp_mtl.storage import PARTIAL, held, remove, write_text, written_folder
from nlp_mtl.training.launcher import launched_accelerator

logger = logging.getLogger(__name__)

# The marker is the first to come and the last to go: it tells that a folder is ours, and what may be removed.
_OURS = ("recipe.yaml", "runs", "predictions", "plots", "report.html", "report.json", "comparison.json")


def compare(
    recipe: Recipe | str | Path,
    *,
    seeds: int = 3,
    pairs: bool = False,
    leave_one_out: bool = False,
    same_steps: bool = False,
    measure_conflicts: bool = True,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Does joint training pay? Train the joint model and a model a task, and tell.

    The same call goes on where an earlier one stopped; with more seeds or groups it trains what is missing.

    Args:
        recipe: of the joint model, or the path of its file.
        seeds: how many; the recipe's ``seed`` is the first.
        pairs: train each two tasks, too.
        leave_one_out: train all tasks but one, too.
        same_steps: models of fewer tasks take as many steps as the joint one, each of fewer rows (a whole number),
            rather than fewer steps of as many.
        measure_conflicts: tell the tasks' gradients apart in some steps of the joint runs; it changes nothing but what
            rounding and dropout draw there.
        output_dir: the comparison's folder; default: the recipe's ``output_dir`` with ``-compare``.
        overwrite: remove what an earlier comparison left there.
        keep_checkpoints: of finished runs; they take several times the room of the models.

    Returns:
        the comparison's folder, and what its ``report.json`` holds (on the main process).

    Raises:
        RunStopped: the process was sent SIGTERM while it trained; a checkpoint was written.
        NlpMtlError: of the kind that fits; nothing that was written before is lost.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_yaml(recipe)
    refuse_extension(recipe)
    if len(recipe.tasks) < 2:
        raise RecipeError([Problem("tasks", "there is one task alone, so there is nothing to compare it with")])
    if recipe.meta is not None:
        raise RecipeError([Problem("meta", "a meta run ends in an encoder alone, so no answers can be compared")])
    if seeds < 1:
        raise RunError(f"{seeds} seeds were asked for; at least one is needed")
    folder = Path(output_dir or f"{recipe.output_dir.rstrip('/')}-compare").expanduser().absolute()
    accelerator = launched_accelerator(recipe.training.mixed_precision)
    flags = {"same_steps": same_steps, "measure_conflicts": measure_conflicts}
    _check_folder(folder, recipe, flags, overwrite)
    accelerator.wait_for_everyone()  # all have seen what is there
    with held(folder) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            _start_folder(folder, recipe, flags, overwrite)
        accelerator.wait_for_everyone()
        report = _compared(
            recipe, folder, accelerator, seeds, pairs, leave_one_out, same_steps, measure_conflicts, keep_checkpoints
        )
    return folder, report


def _compared(
    recipe: Recipe,
    folder: Path,
    accelerator: Accelerator,
    seeds: int,
    pairs: bool,
    leave_one_out: bool,
    same_steps: bool,
    measure_conflicts: bool,
    keep_checkpoints: bool,
) -> dict[str, Any]:
    """Train what is missing in a folder that is ready, and write the report."""
    prepared = prepare(recipe, accelerator=accelerator)
    models = groups([*recipe.tasks], pairs, leave_one_out)
    plan = budget(recipe, prepared)
    _check_drawn(recipe, plan)
    gradients, unmeasured = (
        measured(recipe, prepared, plan.steps)
        if measure_conflicts
        else (recipe.gradients.model_dump(mode="json"), "it was not asked for")
    )
    splits = _scored_splits(prepared)
    digests = _digests(prepared, splits)
    asked = Asked(folder, recipe, prepared, models, splits, digests, accelerator, same_steps, keep_checkpoints)
    runs: dict[str, list[FinishedRun]] = {name: [] for name in models}
    recipes: dict[str, list[Recipe]] = {name: [] for name in models}
    for number, seed in enumerate(range(recipe.seed, recipe.seed + seeds)):
        joint = joint_recipe(recipe, seed, asked.run_folder("joint", seed), gradients)
        for place, (name, group) in enumerate(models.items()):
            before = ", done before" if (asked.run_folder(name, seed) / "results.json").is_file() else ""
            logger.info(
                "Run %d of %d: %s, seed %d%s", number * len(models) + place + 1, len(models) * seeds, name, seed, before
            )
            own = joint
            if name != "joint":
                own = part_recipe(joint, group, plan, asked.run_folder(name, seed), same_steps=same_steps)
            runs[name].append(_finished_run(asked, name, own))
            recipes[name].append(own)
            if name == "joint":
                plan = budget(joint, prepared, runs[name][-1].lines)
    report: dict[str, Any] = {}
    if accelerator.is_main_process:
        report = comparison_report(asked, runs, recipes, unmeasured, pairs, leave_one_out)
        _save(folder, report)
    accelerator.wait_for_everyone()
    return report


def _check_folder(folder: Path, recipe: Recipe, flags: Mapping[str, bool], overwrite: bool) -> None:
    """That a comparison may use its folder, for the first time or to go on.

    Raises:
        RunError: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: use another --output-dir")
    occupied = folder.is_dir() and any(not path.name.endswith(PARTIAL) for path in folder.iterdir())
    if occupied and not (folder / "comparison.json").is_file():
        raise RunError(f"{folder} already holds something that is no comparison: use another --output-dir")
    kept = saved_recipe(folder) if (folder / "recipe.yaml").is_file() and not overwrite else None
    if kept is not None and (changes := learned_changes(kept, recipe.to_dict())):
        raise RunError(
            f"the comparison in {folder} was started with another recipe: use another --output-dir, or --overwrite "
            "to remove it" + "".join(f"\n  {change}" for change in changes)
        )
    if kept is None:
        return
    for flag, before in json.loads((folder / "comparison.json").read_text(encoding="utf-8")).get("flags", {}).items():
        if before != flags[flag]:
            option = {"same_steps": "--same-steps", "measure_conflicts": "--no-conflicts"}[flag]
            is_given = flags[flag] == (flag == "same_steps")
            raise RunError(
                f"the comparison in {folder} was started {'without' if is_given else 'with'} {option}: "
                f"{'leave it out' if is_given else 'give it again'}, use another --output-dir, or --overwrite to "
                "remove it"
            )


def _start_folder(folder: Path, recipe: Recipe, flags: Mapping[str, bool], overwrite: bool) -> None:
    if overwrite:
        remove(folder, _OURS)
    try:
        write_text(
            folder / "comparison.json",
            json.dumps({"versions": versions(), "command": command(), "flags": flags}) + "\n",
        )
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        (folder / "predictions").mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from error


def _check_drawn(recipe: Recipe, plan: Budget) -> None:
    """That there is a budget for each task's own model.

    Raises:
        RecipeError: the joint run draws no row of a task's datasets.
    """
    for task, spec in recipe.tasks.items():
        if not any(plan.rows.get(name) for name in spec.columns()):
            where = "training.max_steps" if recipe.training.max_steps else "training.num_epochs"
            message = (
                f"in {plan.steps} steps the joint run draws no row of {listed(spec.columns())}, so `{task}` has no "
                "budget to be trained alone with: take more steps, or a larger share of its rows"
            )
            raise RecipeError([Problem(where, message)])


def _scored_splits(prepared: Prepared) -> dict[str, str]:
    """``{task: test}``, or validation where there is no test split with its labels.

    Raises:
        DataError: a task has neither.
    """
    found: dict[str, str] = {}
    for split in ("test", "validation"):
        for rows in prepared.split(split).values():
            found |= {task: split for task in rows.tasks if task not in found and rows.labelled[task].any()}
    if missing := [task.name for task in prepared.tasks if task.name not in found]:
        raise DataError(
            f"{listed(missing)}: no labelled rows in a test or validation split, so nothing can be compared"
        )
    return found


def _digests(prepared: Prepared, splits: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        dataset: {split: rows_digest(prepared, dataset, split) for split in {*splits.values()} if split in of_splits}
        for dataset, of_splits in prepared.encoded.items()
    }


def _finished_run(asked: Asked, model: str, recipe: Recipe) -> FinishedRun:
    """Train a run to its end, unless it was; and what it answers for the test rows."""
    folder, accelerator = Path(recipe.output_dir), asked.accelerator
    # A kill before the run's first file was whole leaves nothing that is worth keeping.
    if folder.is_dir() and all(path.name.endswith(PARTIAL) for path in folder.iterdir()):
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(folder)
        accelerator.wait_for_everyone()
    check_folder(folder, recipe, "auto", False)
    if not (folder / "results.json").is_file():  # the last that is written of what is needed here
        try:
            train(recipe, resume="auto")
        except RunStopped as error:
            message = f"{model}, seed {recipe.seed}: {error} (the same command goes on there)"
            raise RunStopped(message, error.by_hand) from error
    if accelerator.is_main_process and not asked.keep_checkpoints and (folder / "checkpoints").is_dir():
        shutil.rmtree(folder / "checkpoints")
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    file = asked.folder / "predictions" / f"{folder.name}.json"
    found = kept_answers(file, recipe, asked.splits, asked.digests, write=accelerator.is_main_process)
    return FinishedRun(model, recipe.seed, found, lines)


def _save(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``plots``, ``report.html`` and ``report.json``, each whole or not at all.

    Raises:
        RunError: one cannot be written.
    """
    pictures: dict[str, bytes] = {}
    if find_spec("matplotlib") is None:
        logger.info("Without matplotlib the report has no plots: pip install 'nlp_mtl[plots]'")
    else:
        with written_folder(folder / "plots") as partial:
            pictures = {path.name: path.read_bytes() for path in draw_comparison(report, partial)}
    write_text(folder / "report.html", page(report, pictures))
    write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
