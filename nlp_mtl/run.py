"""A run from start to end, and the folder that holds all it produced."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from nlp_mtl.analysis.data_report import data_report
from nlp_mtl.build import Prepared, prepare, steps, trainer_arguments
from nlp_mtl.data.batches import frame
from nlp_mtl.errors import DataError, RunError
from nlp_mtl.evaluation import evaluate as evaluate_splits
from nlp_mtl.evaluation import selection_score
from nlp_mtl.inference.predictor import load_model
from nlp_mtl.metrics import Scores
from nlp_mtl.models.encoder import load_encoder
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_reading import changed_keys
from nlp_mtl.training.trainer import train as train_model

logger = logging.getLogger(__name__)

# The recipe is the last to go: it tells that the folder is a run's, should removing be interrupted.
_OURS = ("environment.json", "metrics.jsonl", "results.json", "model", "checkpoints", "recipe.yaml")


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train, evaluate and save a model as a recipe says; returns what ``results.json`` holds.

    Args:
        resume: go on from the newest checkpoint in the recipe's ``output_dir``.
        overwrite: remove what an earlier run left there.

    Raises:
        NlpMtlError: of the kind that fits; nothing that was written before is lost.
    """
    output_dir = Path(recipe.output_dir).absolute()
    _check_folder(output_dir, recipe, resume, overwrite)
    accelerator = Accelerator(mixed_precision="no")  # the trainer says itself what runs in bfloat16
    prepared = prepare(recipe, accelerator=accelerator)
    data = steps(
        recipe, prepared,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device.type,
    )  # fmt: skip
    arguments = trainer_arguments(recipe, prepared)
    set_seed(recipe.seed)  # the heads' first weights
    model = from_encoder(
        load_encoder(recipe.encoder, recipe.encoder_revision, recipe.training.dropout),
        prepared.tasks,
        word_splitter=recipe.word_splitter,
        max_length=prepared.framing.max_length,
        window_overlap=recipe.window_overlap,
    )
    # Only now is an old run removed: what could fail before has not.
    if not resume and accelerator.is_main_process:
        _start_folder(output_dir, recipe, accelerator, overwrite)
    accelerator.wait_for_everyone()
    progress = sys.stderr.isatty() and accelerator.is_main_process

    def score(split: str) -> dict[str, Scores]:
        return evaluate_splits(
            model, prepared.split(split), prepared.tasks, prepared.framing,
            max_tokens=recipe.training.max_tokens,
            mixed_precision=recipe.training.mixed_precision,
            accelerator=accelerator,
            progress=progress,
        )  # fmt: skip

    def validate(_: MultiTaskModel) -> tuple[dict[str, Scores], float | None]:
        scores = score("validation")
        return scores, selection_score(scores, prepared.tasks, recipe.training.selection_weights)

    state = train_model(
        model, data, prepared.tasks, validate,
        accelerator=accelerator, output_dir=output_dir, resume=resume, **arguments,
    )  # fmt: skip
    scores = {split: found for split in ("validation", "test") if (found := score(split))}
    weighted = "weighted " if recipe.training.selection_weights else ""
    results = {
        "scores": scores,
        "selection_score": state.best_score,
        "selection": f"{weighted}mean of the tasks' main metrics on validation",
        "main_metrics": {task.name: task.metric for task in prepared.tasks},
        "step": state.best_step or state.step,
        "steps": state.step,
        "seed": recipe.seed,
        "data": _describe_data(prepared),
        "versions": _versions(),
        "command": _command(),
    }
    if accelerator.is_main_process:
        save_model(output_dir / "model", model, prepared.tokenizer)
        _write(output_dir / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    accelerator.wait_for_everyone()
    return results


def check(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's data holds and what is odd about it; see :func:`nlp_mtl.analysis.data_report.data_report`."""
    prepared = prepare(recipe)
    return data_report(prepared.tasks, prepared.loaded, prepared.encoded, prepared.framing, steps(recipe, prepared))


def evaluate(
    path: str | Path, recipe: Recipe | None = None, *, split: str = "test", revision: str | None = None
) -> dict[str, Scores]:
    """Score a trained model on a split of a recipe's datasets: ``{task: scores}``.

    Args:
        path: a run folder, a model folder, or a Hub id.
        recipe: default: the run folder's own.
        split: ``validation`` or ``test``.

    Raises:
        NlpMtlError: of the kind that fits.
    """
    recipe = recipe or run_recipe(path)
    model, tokenizer = load_model(path, revision=revision)
    accelerator = Accelerator(mixed_precision="no")
    model.to(accelerator.device)
    config = model.config
    prepared = prepare(
        recipe,
        accelerator=accelerator,
        tokenizer=tokenizer,
        framing=frame(tokenizer, config.max_length, config.window_overlap),
        trained_tasks=config.task_list(),
        splits=[split],
    )
    scores = evaluate_splits(
        model, prepared.split(split), prepared.tasks, prepared.framing,
        max_tokens=max(recipe.training.max_tokens, config.max_length),
        mixed_precision=recipe.training.mixed_precision,
        accelerator=accelerator,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    if not scores:
        raise DataError(f"no dataset of the recipe has labelled rows in the split `{split}`")
    return scores


def run_recipe(path: str | Path) -> Recipe:
    """The recipe that a run folder keeps.

    Raises:
        RunError: it is not a run folder.
    """
    file = Path(path) / "recipe.yaml"
    if not file.is_file():
        raise RunError(
            f"{path} is not a run folder (it has no recipe.yaml): say which recipe's data to use, with --recipe"
        )
    return Recipe.from_yaml(file)


def save_model(folder: Path, model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save a model with its tokenizer: complete or not at all.

    Raises:
        RunError: it cannot be written; a model that was there before is untouched.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise RunError(f"the model cannot be written to {folder}: {error}") from error


def _check_folder(output_dir: Path, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Whether the run may use its folder.

    Raises:
        RunError: why not, and what to do.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    if output_dir.exists() and not output_dir.is_dir():
        raise RunError(f"output_dir {output_dir} is a file")
    occupied = output_dir.is_dir() and any(output_dir.iterdir())
    is_run = (output_dir / "recipe.yaml").is_file()
    if resume:
        if not is_run:
            raise RunError(f"there is no run to resume in {output_dir}; start without --resume")
        # Where the folder lies, and from where it is reached, does not matter to what is learned.
        old, new = _saved_recipe(output_dir), {**recipe.to_dict(), "output_dir": ""}
        changes = changed_keys(old, new)
        if not changes:  # the order does: rows are drawn, and heads made, one after the other
            changes = [f"{key}: in another order" for key in ("datasets", "tasks") if [*old[key]] != [*new[key]]]
        if changes:
            raise RunError(
                f"the run in {output_dir} was started with another recipe, so it cannot be resumed with this one:"
                + "".join(f"\n  {change}" for change in changes)
            )
    elif occupied and not overwrite:
        what = "a run" if is_run else "files"
        hint = "--resume to go on with it, --overwrite to remove it, or " if is_run else ""
        raise RunError(f"output_dir {output_dir} already holds {what}: use {hint}another output_dir")
    elif occupied and not is_run:
        raise RunError(f"output_dir {output_dir} holds files but no run, so --overwrite does not remove them")


def _saved_recipe(output_dir: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((output_dir / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{output_dir / 'recipe.yaml'} cannot be read, so the run cannot be resumed: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{output_dir / 'recipe.yaml'} is not a recipe, so the run cannot be resumed")
    return {**values, "output_dir": ""}


def _start_folder(output_dir: Path, recipe: Recipe, accelerator: Accelerator, overwrite: bool) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in _OURS if overwrite else ():
            path = output_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        _write(output_dir / "recipe.yaml", recipe.to_yaml())
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": _versions(),
            "git_commit": _git_commit(),
            "device": str(accelerator.device),
            "num_processes": accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
            "command": _command(),
        }
        _write(output_dir / "environment.json", json.dumps(environment, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"output_dir {output_dir} cannot be written: {error}") from error


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error}") from error


def _describe_data(prepared: Prepared) -> dict[str, Any]:
    return {
        dataset: {
            name: {
                "rows": len(split),
                "taken_from": split.source.source,
                "files": [Path(file).name for file in split.source.files],
            }
            for name, split in splits.items()
        }
        for dataset, splits in prepared.encoded.items()
    }


def _versions() -> dict[str, str]:
    names = ("nlp_mtl", "torch", "transformers", "datasets", "accelerate", "tokenizers", "seqeval")
    return {name: version(name) for name in names}


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _git_commit() -> str | None:
    """The commit of the directory that the run was started in, if it is in a git repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
