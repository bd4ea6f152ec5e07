"""The run folder: who may use it, and what is written to it besides checkpoints and metrics."""

import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_mtl.analysis.plots import draw_plots
from nlp_mtl.errors import RunError, first_line
from nlp_mtl.recipe import COMPUTATION, Recipe
from nlp_mtl.recipe_reading import changed_keys
from nlp_mtl.storage import remove, save_tokenizer, write_text, written_folder
from nlp_mtl.training.checkpoint import checkpoints

logger = logging.getLogger(__name__)

# The environment is the first to come and the last to go: it tells that a folder is a run's, and what may be removed.
RUN_FILES = (
    "recipe.yaml", "metrics.jsonl", "results.json", "model", "plots", "pushing", "checkpoints", "extension", "trackers",
    "environment.json",
)  # fmt: skip


def check_folder(output_dir: Path, recipe: Recipe, resume: bool | Literal["auto"], overwrite: bool) -> bool:
    """Whether a run may use its folder. Nothing is written.

    Returns:
        whether it goes on from a checkpoint there. With ``resume="auto"`` a run that has none yet starts again.

    Raises:
        RunError: why not, and what to do.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    if output_dir.exists() and not output_dir.is_dir():
        raise RunError(f"output_dir {output_dir} is a file")
    occupied = output_dir.is_dir() and any(output_dir.iterdir())
    is_run = _is_run(output_dir)
    if resume and (is_run or resume != "auto"):
        if not is_run:
            raise RunError(f"there is no run to resume in {output_dir}; start without --resume")
        changes = learned_changes(saved_recipe(output_dir), recipe.to_dict())
        if changes:
            raise RunError(
                f"the run in {output_dir} was started with another recipe, so it cannot be resumed with this one:"
                + "".join(f"\n  {change}" for change in changes)
            )
        return resume != "auto" or bool(checkpoints(output_dir / "checkpoints"))
    if occupied and not overwrite:
        what = "a run" if is_run else "files"
        hint = "--resume to go on with it, --overwrite to remove it, or " if is_run else ""
        if is_run and not checkpoints(output_dir / "checkpoints") and not (output_dir / "results.json").exists():
            hint = "--overwrite to start it again (it has no checkpoint to go on from), or "
        raise RunError(f"output_dir {output_dir} already holds {what}: use {hint}another output_dir")
    if occupied and not is_run:
        raise RunError(f"output_dir {output_dir} holds files but no run, so --overwrite does not remove them")
    return False


def _is_run(output_dir: Path) -> bool:
    """Whether a run wrote the folder: a recipe alone may be the user's own."""
    try:
        environment = json.loads((output_dir / "environment.json").read_text(encoding="utf-8"))
        return "nlp_mtl" in environment["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def learned_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two resolved recipes and matters to what is learned."""
    apart: dict[str, Any] = {"hub": None, "tune": None}  # where the model goes, and what only tuning reads, may change
    models = [(values.get("compression") or {}).get("model") for values in (old, new)]
    if models[0] != models[1]:
        models = [_in_run(model, values) for model, values in zip(models, (old, new), strict=True)]
    starts = [{"compression": {"model": model}} for model in models]
    if all((values.get("extension") or {}).get("model") for values in (old, new)):
        apart |= dict.fromkeys(("encoder", "encoder_revision"))  # they are that model's, which its checksum tells
    old, new = {**old, **apart, **starts[0]}, {**new, **apart, **starts[1]}
    where = re.compile(r"datasets\.[^.]+\.data_dir")
    changes = [
        f"{key}: {left!r} -> {right!r}"
        for key, left, right in changed_keys(old, new)
        if key not in COMPUTATION and not where.fullmatch(key)
    ]
    if not changes:  # the order matters: rows are drawn, and heads made, one after the other
        changes = [f"{key}: in another order" for key in ("datasets", "tasks") if [*old[key]] != [*new[key]]]
    return changes


def _in_run(model: Any, recipe: Mapping[str, Any]) -> str | None:
    """The model that training starts from; one in the run folder as seen from there, however that is spelled."""
    if model is None:
        return None
    path, folder = (os.path.abspath(Path(str(one)).expanduser()) for one in (model, recipe.get("output_dir")))
    return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


def saved_recipe(output_dir: Path) -> dict[str, Any]:
    """The values of the recipe that a folder keeps.

    Raises:
        RunError: it cannot be read.
    """
    file = output_dir / "recipe.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{file} cannot be read, so what is here cannot be resumed: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise RunError(f"{file} is not a recipe, so what is here cannot be resumed")
    return values


def start_folder(output_dir: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Make a run folder, without what an earlier run left there.

    Raises:
        RunError: it cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"output_dir {output_dir} cannot be written: {error.strerror}") from error
    # Trackers that run already have cleared theirs.
    remove(output_dir, (name for name in RUN_FILES if not (name == "trackers" and accelerator.log_with)))
    _keep_environment(output_dir, _environment(accelerator))
    write_text(output_dir / "recipe.yaml", recipe.to_yaml())


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "git_commit": _git_commit(),
        "device": str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "fully_sharded": accelerator.is_fsdp2,
        "num_threads": torch.get_num_threads(),
        "command": command(),
    }


def _keep_environment(output_dir: Path, environment: dict[str, Any]) -> None:
    write_text(output_dir / "environment.json", json.dumps(environment, indent=1) + "\n")


def keep_resumption(output_dir: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Keep what a resumed run ended with: where it ran, and its recipe, which may have said anew where the data lie.

    Raises:
        RunError: it cannot be written.
    """
    environment = json.loads((output_dir / "environment.json").read_text(encoding="utf-8"))
    environment["resumed"] = [*environment.get("resumed", []), _environment(accelerator)]
    _keep_environment(output_dir, environment)
    if saved_recipe(output_dir) != recipe.to_dict():
        write_text(output_dir / "recipe.yaml", recipe.to_yaml())


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor] | None = None,
    card: str | None = None,
) -> None:
    """Save a model with its tokenizer: complete or not at all.

    Args:
        weights: the model's, where it holds only a part of them itself.
        card: the model card.

    Raises:
        RunError: it cannot be written; a model that was there before is untouched.
    """
    with written_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=weights)
        save_tokenizer(tokenizer, partial)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")


def save_plots(folder: Path, main_metrics: Mapping[str, str], metrics_file: Path) -> None:
    """Draw how a run went into ``folder/plots``, if matplotlib is installed and there is anything to be seen.

    Raises:
        RunError: it cannot be written.
    """
    if find_spec("matplotlib") is None:
        logger.info("Without matplotlib there are no plots: pip install 'nlp_mtl[plots]'")
        return
    with written_folder(folder / "plots") as partial:
        drawn = draw_plots(metrics_file, partial, main_metrics)
    if not drawn:
        (folder / "plots").rmdir()


def save_results(output_dir: Path, results: dict[str, Any]) -> None:
    """Write ``results.json``.

    Raises:
        RunError: it cannot be written.
    """
    write_text(output_dir / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """The versions of this package and of those that scores may depend on."""
    names = ("nlp_mtl", "torch", "transformers", "datasets", "accelerate", "tokenizers", "seqeval")
    return {name: version(name) for name in names}


def command() -> str:
    """The command line that runs this, as it can be typed again."""
    program = Path(sys.argv[0])
    started = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*started, *sys.argv[1:]])


def _git_commit() -> str | None:
    """The commit of the directory that the run was started in, if it is in a git repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
