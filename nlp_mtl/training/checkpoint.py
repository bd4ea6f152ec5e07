"""Checkpoints: complete or absent. A folder is written aside, synced to disk, and renamed.

``checkpoints/step-N/`` holds ``model.safetensors``, ``optimizer.safetensors`` (AdamW's state by parameter name),
``average.safetensors`` where weights are averaged, ``state.json`` (:class:`TrainingState`), and ``manifest.json`` with
size and checksum of each. Nothing in it is pickled. Learning rates, data order and random numbers are functions of the
step, so they need no state.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nlp_mtl.errors import RunError, first_line
from nlp_mtl.models.fully_sharded import gathered, load_weights, part_of
from nlp_mtl.storage import PARTIAL, aside, written_folder
from nlp_mtl.training.manifest import damage, write_manifest

logger = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)")


@dataclass
class TrainingState:
    """Where training stands after a step."""

    step: int = 0
    """Optimizer steps done."""
    best_step: int | None = None
    """The evaluation with the best selection score, ..."""
    best_score: float | None = None
    evaluations_without_gain: int = 0
    finished: bool = False
    """Training has ended: all steps done, or stopped early."""
    pending: dict[str, list[float]] = field(default_factory=dict)
    """Losses that wait for the next line of metrics.jsonl, by task."""
    pending_weights: list[list[float]] = field(default_factory=list)
    """[steps, tasks] The weights of the losses in the steps that no line has told yet."""
    data: str = ""
    """What was learned from, as :meth:`nlp_mtl.data.batches.StepDataset.digest` has it: a resumed run checks it."""
    score: float | None = None
    """The selection score of this step, if it was evaluated."""
    cursors: dict[str, list[Any]] = field(default_factory=dict)
    """Where to read on in streamed datasets."""
    phases: list[list[Any]] = field(default_factory=list)
    """The phases of dynamic sampling, as ``[first draw, rates]``."""
    balancing: dict[str, Any] = field(default_factory=dict)
    """What the tasks' weights depend on; see :class:`nlp_mtl.training.balancing.Balancer`."""
    gradients: dict[str, Any] = field(default_factory=dict)
    """What the weights of the tasks' gradients depend on; see :class:`nlp_mtl.training.gradients.TaskGradients`."""
    losses_since: dict[str, list[float]] = field(default_factory=dict)
    """``{task: [sum, steps]}`` of losses since the last evaluation."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    average: nn.Module | None = None,
    *,
    write: bool = True,
) -> Path:
    """Write ``folder/step-N``; returns it.

    All processes have to call it if the model is sharded. What is written does not tell whether it was.

    Args:
        average: the model with averaged weights, if there are any.
        write: on this process; one does.

    Raises:
        RunError: it cannot be written (a full disk, no permission); older checkpoints are untouched.
    """
    path = folder / f"step-{state.step}"
    parts = {"model": model.state_dict(), "optimizer": _optimizer_tensors(optimizer)}
    if average is not None:
        parts["average"] = average.state_dict()
    with written_folder(path) if write else nullcontext() as partial:
        for name, tensors in parts.items():  # one at a time is whole, on the process that writes
            found = gathered(tensors, write)
            if partial is not None:
                save_file(found, partial / f"{name}.safetensors")
        if partial is not None:
            (partial / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
            write_manifest(partial)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step_of)


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; newer ones, which are not, are told. None: there is none."""
    for path in reversed(checkpoints(folder)):
        problem = damage(path)
        if problem is None:
            return path
        logger.warning("Checkpoint %s is damaged (%s): an older one is sought", path, problem)
    return None


def later_than(path: Path) -> list[Path]:
    """The checkpoints beside one that are of later steps."""
    return [other for other in checkpoints(path.parent) if _step_of(other) > _step_of(path)]


def set_aside(damaged: Iterable[Path]) -> None:
    """Rename damaged checkpoints to ``step-N.damaged``: they are none any more, and rotation does not count them.

    Raises:
        RunError: one cannot be renamed.
    """
    try:
        for path in damaged:
            renamed = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(renamed, ignore_errors=True)
            os.replace(path, renamed)
    except OSError as error:
        raise RunError(f"a damaged checkpoint cannot be renamed: {error}") from error


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> TrainingState:
    """Load a checkpoint into a model, an optimizer with the same parameters, and averaged weights; returns the state.

    Raises:
        RunError: the checkpoint is damaged, or of another model.
    """
    try:
        state = _read_state(path)
        load_weights(model, load_file(path / "model.safetensors"))
        if average is not None:
            load_weights(average, load_file(path / "average.safetensors"))
        _restore_optimizer(load_file(path / "optimizer.safetensors"), optimizer)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        problem = " ".join(str(error).split())  # torch tells which weights in lines of their own
        raise RunError(
            f"checkpoint {path} is damaged, or does not fit the model: {problem:.300}. "
            "Remove it to resume from an older one"
        ) from error
    return state


def _read_state(path: Path) -> TrainingState:
    return TrainingState(**json.loads((path / "state.json").read_text(encoding="utf-8")))


def load_newest(folder: Path, model: nn.Module) -> None:
    """Load the weights of the checkpoint that a run is resumed from.

    Raises:
        RunError: it does not fit.
    """
    path = newest_sound(folder)
    if path is not None:  # without one, resuming tells so
        _load(path / "model.safetensors", model)


def load_best(path: Path, model: nn.Module) -> None:
    """Load the weights that a checkpoint's evaluation scored: the averaged ones, where there are any.

    Raises:
        RunError: it is damaged, or does not fit.
    """
    problem = damage(path)
    if problem is not None:
        raise RunError(f"checkpoint {path}, the best of the run, is damaged ({problem}): start again, with --overwrite")
    average = path / "average.safetensors"
    _load(average if average.exists() else path / "model.safetensors", model)


def _load(file: Path, model: nn.Module) -> None:
    try:
        load_weights(model, load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"checkpoint {file.parent} does not fit the model: {first_line(error)}") from error


def rotate(folder: Path, keep_last: int, keep_best: int = 1) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best ``keep_best``, and what a crash half-wrote.

    What the state of any of the newest names as the best is among them, so that a run can be resumed from each.

    Raises:
        RunError: one cannot be removed.
    """
    try:
        found = checkpoints(folder)
        states = {path: _state(path) for path in found}
        scored = [(state.score, -state.step) for state in states.values() if state and state.score is not None]
        best = {-step for _, step in sorted(scored, reverse=True)[:keep_best]}  # of equals the first, as in training
        best |= {state.best_step for path in found[-keep_last:] if (state := states[path]) and state.best_step}
        for path in found[:-keep_last]:
            if _step_of(path) not in best:
                # Removing takes a while, renaming does not: what has the name of a checkpoint is complete.
                os.replace(path, aside(path))
        for path in folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(path)
    except OSError as error:
        raise RunError(f"an old checkpoint cannot be removed: {error}") from error


def _state(path: Path) -> TrainingState | None:
    try:
        return _read_state(path)
    except (FileNotFoundError, ValueError, TypeError):
        return None  # damaged: it names no best, and nothing can be resumed from it


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["parameter_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
    return tensors


def _restore_optimizer(tensors: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["parameter_names"], group["params"], strict=True)
    }
    optimizer.state.clear()
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        parameter = parameters[name]
        value = value.to(parameter.device)
        # The number of steps is a number; all else is of the parameter's shape, and divided as it is.
        optimizer.state[parameter][kind] = part_of(value, parameter) if value.ndim else value
