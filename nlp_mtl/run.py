"""The verb ``nlp-mtl train``, and what others train with."""

import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from nlp_mtl.build import (
    balancer,
    expects_to_pack,
    layout,
    new_model,
    selecting_tasks,
    selection_weights,
    steps,
    task_gradients,
    trainer_arguments,
)
from nlp_mtl.build_consistency import settle_consistency
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.build_distillation import taught
from nlp_mtl.build_extended import learned_tasks, old_lessons
from nlp_mtl.build_extension import Base
from nlp_mtl.build_meta import describe_episodes, episode_steps, meta_arguments, meta_gradients
from nlp_mtl.build_start import start_arguments
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.data_description import describe_data
from nlp_mtl.errors import DataError, Problem, RecipeError, RunError
from nlp_mtl.evaluation import selection_score
from nlp_mtl.metrics import Scores
from nlp_mtl.models.encoder import is_on_hub
from nlp_mtl.models.fully_sharded import gathered, is_sharded
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.trained_encoder import without_heads
from nlp_mtl.recipe import SPLITS, Recipe
from nlp_mtl.run_evaluation import read_recipe
from nlp_mtl.run_extension import begin_extension, keep_beginning, refuse_extension
from nlp_mtl.run_folder import (
    check_folder,
    command,
    keep_resumption,
    save_model,
    save_plots,
    save_results,
    start_folder,
    versions,
)
from nlp_mtl.run_push import RunPusher, remove_pushing, run_card
from nlp_mtl.run_scores import Score, asking, score_split, scorer
from nlp_mtl.run_trial import Evaluated, Look, Trial
from nlp_mtl.storage import held
from nlp_mtl.training.checkpoint import TrainingState, load_newest
from nlp_mtl.training.compiled import try_compiler
from nlp_mtl.training.determinism import deterministic_kernels
from nlp_mtl.training.launcher import launched_accelerator
from nlp_mtl.training.termination import noted_termination
from nlp_mtl.training.trackers import Track, tracked, tracking_arguments
from nlp_mtl.training.trainer import train as train_model

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe | str | Path, *, resume: bool | Literal["auto"] = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train, evaluate and save a model as a recipe says; returns what ``results.json`` holds.

    Args:
        recipe: a recipe, or the path of its file.
        resume: go on from the newest checkpoint in the recipe's ``output_dir``; ``"auto"``: or start, where there is
            none.
        overwrite: remove what an earlier run left there.

    Raises:
        RunStopped: the process was sent SIGTERM while it trained; a checkpoint was written.
        NlpMtlError: of the kind that fits; nothing that was written before is lost.
    """
    return _run(read_recipe(recipe), resume, overwrite)


def train_extended(
    base: Base, recipe: Recipe, *, resume: bool | Literal["auto"] = False, overwrite: bool = False
) -> dict[str, Any]:
    """As :func:`train`, of a trained model that gets more tasks.

    Args:
        recipe: of both, as :func:`nlp_mtl.extend_recipes.read_extension` gives it.
    """
    return _run(recipe, resume, overwrite, base=base)


def train_trial(recipe: Recipe, evaluated: Evaluated, *, resume: bool) -> dict[str, Any]:
    """Train to see how well a recipe does: without the test split, a model that is kept, and plots.

    Args:
        evaluated: told of each evaluation but that of the last step; what it raises ends the run.
        resume: as in :func:`train`.

    Returns:
        what ``results.json`` holds.

    Raises:
        DataError: no task that counts for the selection score has labels on validation.
        RunStopped, NlpMtlError: as :func:`train`.
    """
    return _run(recipe, resume, False, Trial(evaluated))


def train_part(recipe: Recipe, train_rows: Mapping[str, np.ndarray], look: Look, *, resume: bool) -> dict[str, Any]:
    """Train on some of the training rows, for others to see: without the test split, a model that is kept, and plots.

    Args:
        train_rows: ``{dataset: ascending places of rows in its training split}``, of those that lose some.
        look: what sees the model.
        resume: as in :func:`train`.

    Returns:
        what ``results.json`` holds.

    Raises:
        RunStopped, NlpMtlError: as :func:`train`.
    """
    return _run(recipe, resume, False, Trial(look=look, train_rows=train_rows))


def _run(
    recipe: Recipe,
    resume: bool | Literal["auto"],
    overwrite: bool,
    trial: Trial | None = None,
    base: Base | None = None,
) -> dict[str, Any]:
    """Train where the run folder allows it; returns the results."""
    if base is None:
        refuse_extension(recipe)
    output_dir = Path(recipe.output_dir).absolute()
    resume = check_folder(output_dir, recipe, resume, overwrite)
    accelerator = launched_accelerator(
        recipe.training.mixed_precision, **tracking_arguments(recipe.training.trackers, output_dir)
    )
    if len(set(gather_object([resume]))) > 1:
        raise RunError(
            f"some processes find a checkpoint in {output_dir} to resume from, and some do not: output_dir has to be "
            "on a file system that all machines share"
        )
    if recipe.training.compile and accelerator.is_fsdp2:
        message = "not together with FSDP, whose layers are put together and taken apart around each pass: leave it out"
        raise RecipeError([Problem("training.compile", message)])
    if recipe.meta is not None and accelerator.is_fsdp2:
        message = "not together with FSDP: each process learns episodes with the whole encoder. Start without it"
        raise RecipeError([Problem("meta", message)])
    if recipe.training.cache_features and accelerator.is_fsdp2:
        message = "not together with FSDP: heads alone fit on every GPU. Start without it, or leave it out"
        raise RecipeError([Problem("training.cache_features", message)])
    if accelerator.is_fsdp2 and (recipe.gradients.strategy != "sum" or recipe.gradients.measure_every):
        message = "not together with FSDP: no process holds the gradients of all shared parameters. Leave it out"
        raise RecipeError([Problem("gradients", message)])
    expects_to_pack(recipe, base)
    with deterministic_kernels(accelerator.device, recipe.training.deterministic):
        return _train(recipe, accelerator, resume, trial, base)


def _train(
    recipe: Recipe, accelerator: Accelerator, resume: bool, trial: Trial | None, base: Base | None
) -> dict[str, Any]:
    """Train where all that the recipe asks for can be had; returns the results."""
    output_dir = Path(recipe.output_dir).absolute()
    splits, train_rows = (SPLITS, None) if trial is None else (("train", "validation"), trial.train_rows)
    trained = start_arguments(recipe) if base is None else {**base.reading(), "extends": True}
    prepared = all_rows = prepare(recipe, accelerator=accelerator, splits=splits, train_rows=train_rows, **trained)
    by_score = trial is not None and trial.evaluated is not None
    if by_score and not selecting_tasks(recipe, prepared):
        raise DataError("no task that counts for the selection score has labels on validation, so no trial is better")
    if base is not None:
        prepared = old_lessons(recipe, prepared, base, accelerator)
    prepared = taught(recipe, prepared, accelerator)
    where = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
    planned = steps if recipe.meta is None else episode_steps
    data: StepDataset = planned(recipe, prepared, device=accelerator.device.type, **where)
    if recipe.training.max_steps is not None and len(data) < recipe.training.max_steps:
        logger.warning(
            "training.max_steps is %d, but after %d steps num_epochs (%g) is over: raise it to train longer",
            recipe.training.max_steps, len(data), recipe.training.num_epochs,
        )  # fmt: skip
    arguments = (
        trainer_arguments(recipe, prepared)
        if recipe.meta is None
        else meta_arguments(recipe, prepared, is_trial=by_score)
    )
    set_seed(recipe.seed)  # the heads' first weights
    model = new_model(recipe, prepared, base)
    arguments["gradients"] = (
        task_gradients(recipe, model, learned_tasks(recipe, prepared))
        if recipe.meta is None
        else meta_gradients(recipe, prepared, model)
    )
    data.packed = model.packs(layout(recipe))
    if resume and recipe.training.cache_features:
        # The encoder may have been trained on where it came from: what is kept is that of the one that is saved.
        load_newest(output_dir / "checkpoints", model)
    score = scorer(recipe, prepared, model, data, accelerator)
    if recipe.training.compile:
        model.to(accelerator.device)
        try_compiler(model.encoder, prepared.framing.max_length, recipe.training.mixed_precision)
    begun = None
    if base is not None:
        of_old = partial(score_split, recipe, all_rows, base.model.packs(layout(recipe)), accelerator)
        begun = begin_extension(base, recipe, all_rows, output_dir, accelerator, of_old, resume)
        arguments["anchor"] = begun.anchor
    pusher = RunPusher(recipe, recipe.hub, output_dir) if recipe.hub and accelerator.is_main_process else None
    with (
        held(output_dir, key="output_dir") if accelerator.is_main_process else nullcontext(),
        tracked(accelerator, output_dir, recipe.to_dict(), resume=resume) as track,
    ):
        # Only now is an old run removed: what could fail before has not.
        if accelerator.is_main_process and not resume:
            start_folder(output_dir, recipe, accelerator)
            if begun is not None:
                keep_beginning(output_dir, begun)
        try:
            results = _trained(
                recipe, prepared, data, model, accelerator, track, resume, arguments, pusher, trial, score,
                begun and begun.told,
            )  # fmt: skip
            if pusher is not None:
                logger.info("Pushed: %s", pusher.finish())
        finally:
            if pusher is not None:
                remove_pushing(output_dir)
    return results


def _trained(
    recipe: Recipe,
    prepared: Prepared,
    data: StepDataset,
    model: MultiTaskModel,
    accelerator: Accelerator,
    track: Track,
    resume: bool,
    arguments: dict[str, Any],
    pusher: RunPusher | None,
    trial: Trial | None,
    score: Score,
    extension: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Train in a run folder that is ready, evaluate and save; returns the results."""
    output_dir = Path(recipe.output_dir).absolute()
    if accelerator.is_main_process:
        remove_pushing(output_dir)
    accelerator.wait_for_everyone()
    evaluated_last, options = model, asking(recipe, data.packed, accelerator)

    def validate(scored: MultiTaskModel) -> tuple[dict[str, Scores], float | None]:
        nonlocal evaluated_last
        evaluated_last = scored
        scores = score("validation", scored)
        return scores, selection_score(scores, prepared.tasks, selection_weights(recipe, prepared))

    def saved(scored: MultiTaskModel, state: TrainingState, scores: dict[str, Scores]) -> None:
        if recipe.hub is not None and recipe.hub.push == "every_save" and not state.finished:
            weights = _gathered(scored, accelerator)
            if pusher is not None:
                told = _results(recipe, prepared, state, {"validation": scores} if scores else {}, extension)
                pusher.send(scored, prepared.tokenizer, weights, {**told, "step": state.step})

    def told(values: Mapping[str, Any], step: int) -> None:
        track(values, step)
        if trial is None or "selection_score" not in values:
            return
        trial.look(evaluated_last, step, options)
        if trial.evaluated is not None and values["selection_score"] is not None and step < len(data):
            trial.evaluated(math.ceil(step / arguments["eval_every"]), values["selection_score"])

    with noted_termination() as termination:
        state = train_model(
            model, data, learned_tasks(recipe, prepared), validate, balancer(recipe, prepared, accelerator.device),
            accelerator=accelerator, output_dir=output_dir, resume=resume, stop=termination.agreed, track=told,
            saved=saved, **arguments,
        )  # fmt: skip
    settle_consistency(recipe, prepared, model, lambda: score("validation", model))
    if trial is not None:
        trial.look(model, None, options)
    scores = {split: found for split in ("validation", "test") if (found := score(split, model))}
    track({"best": scores}, state.step)
    results = _results(recipe, prepared, state, scores, extension)
    if recipe.meta is not None:
        model = without_heads(model, recipe.meta.algorithm)
    weights = _gathered(model, accelerator)
    if accelerator.is_main_process:
        if resume:
            keep_resumption(output_dir, recipe, accelerator)
        if trial is None:
            card = run_card(output_dir, recipe, results, model)
            save_model(output_dir / "model", model, prepared.tokenizer, weights, card)
            save_plots(output_dir, results["main_metrics"], output_dir / "metrics.jsonl")
        save_results(output_dir, results)
    accelerator.wait_for_everyone()
    return results


def _results(
    recipe: Recipe,
    prepared: Prepared,
    state: TrainingState,
    scores: dict[str, dict[str, Scores]],
    extension: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    return {
        "scores": scores,
        "main_metrics": {task.name: task.metric for task in prepared.tasks},
        "selection": {
            "score": state.best_score,
            "of": f"{'weighted ' * bool(recipe.training.selection_weights)}mean of the tasks' main metrics",
            "weights": selection_weights(recipe, prepared),
            "split": "validation",
        },
        **({} if recipe.meta is None else {"episodes": describe_episodes(recipe)}),
        "step": state.best_step or state.step,
        "steps": state.step,
        "finished": state.finished,
        "seed": recipe.seed,
        "encoder": {
            "name": recipe.encoder,
            "revision": recipe.encoder_revision,
            "from_hub": is_on_hub(recipe.encoder),
        },
        **({} if extension is None else {"extension": dict(extension)}),
        **({} if recipe.distillation is None else {"teachers": dict(recipe.distillation.teachers)}),
        "data": describe_data(recipe, prepared),
        "versions": versions(),
        "command": command(),
    }


def _gathered(model: MultiTaskModel, accelerator: Accelerator) -> dict[str, torch.Tensor] | None:
    """On the main process, the weights of a model that is shared among processes; None: it is whole."""
    return gathered(model.state_dict(), keep=accelerator.is_main_process) if is_sharded(model) else None
