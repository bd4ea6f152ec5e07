"""The training loop on Accelerate, readable from top to bottom."""

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nlp_mtl.data.steps import StepBatches, StepDataset
from nlp_mtl.errors import RunError, RunStopped
from nlp_mtl.metrics import Scores
from nlp_mtl.models.fully_sharded import place, whole
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task
from nlp_mtl.training import checkpoint, metrics_log
from nlp_mtl.training.affinity import LookAhead
from nlp_mtl.training.anchor import Anchor
from nlp_mtl.training.balancing import Balancer
from nlp_mtl.training.checkpoint import TrainingState
from nlp_mtl.training.compiled import CompiledLayers
from nlp_mtl.training.cpu import keep_freed_memory, quick_step, zero_gradients
from nlp_mtl.training.gradients import TaskGradients
from nlp_mtl.training.held_back import held_back
from nlp_mtl.training.loader import loaded_steps
from nlp_mtl.training.loss_recorder import LossRecorder
from nlp_mtl.training.manifest import damage
from nlp_mtl.training.meta import MetaGradients
from nlp_mtl.training.optimizer import add_penalties, averaged, new_optimizer, schedule_factor, set_learning_rates
from nlp_mtl.training.passes import forward_backward, forward_only, over_processes, present_tasks
from nlp_mtl.training.progress import Progress
from nlp_mtl.training.threads import ForwardBackward, SharedSteps, draws_only_quick_dropout
from nlp_mtl.training.trackers import Track

logger = logging.getLogger(__name__)

Evaluate = Callable[[MultiTaskModel], tuple[dict[str, Scores], float | None]]
"""Scores a model: ``({task: scores}, selection score)``."""
Resample = Callable[[Mapping[str, Scores], Mapping[str, float]], dict[str, float]]
"""From scores on validation and mean losses since the last evaluation, by task: ``{dataset: its share}``."""
Saved = Callable[[MultiTaskModel, TrainingState, dict[str, Scores]], None]
"""Takes the model that was saved, where training stands, and its scores, if it was evaluated."""


def train(
    model: MultiTaskModel,
    data: StepDataset,
    tasks: Sequence[Task],
    evaluate: Evaluate,
    balancer: Balancer,
    *,
    accelerator: Accelerator,
    gradients: TaskGradients | MetaGradients | None = None,
    plain_steps: bool = False,
    output_dir: Path,
    seed: int,
    learning_rate: float,
    head_learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    schedule: str,
    warmup_fraction: float,
    max_grad_norm: float,
    eval_every: int | None,
    log_every: int,
    save_every: int | None,
    keep_last: int,
    keep_best: int,
    early_stopping_patience: int | None,
    ema_decay: float,
    mixed_precision: str,
    num_workers: int,
    unfreeze_every: int | None,
    compile: bool,
    l1_penalty: float,
    l2_penalty: float,
    anchor: Anchor | None = None,
    resume: bool = False,
    resample: Resample | None = None,
    stop: Callable[[], bool] = lambda: False,
    track: Track = lambda values, step: None,
    saved: Saved = lambda model, state, scores: None,
) -> TrainingState:
    """Train a model; at the end it holds the weights of the best evaluation (of the last step without any).

    Everything random in a step (rows, dropout) is a function of the seed and the step, and checkpoints are written
    only between steps, so a run that is resumed goes on as if it had not stopped.

    Args:
        data: the steps; all of them are trained.
        balancer: the weights of the tasks' losses.
        gradients: tells the tasks' gradients apart, or makes meta steps; None: they are added up.
        plain_steps: without AdamW.
        evaluate: called every ``eval_every`` steps and at the end.
        anchor: draws weights back to where they started, in place of their weight decay; None: nothing does.
        output_dir: gets ``metrics.jsonl`` and ``checkpoints/``.
        resume: go on from the newest checkpoint there.
        resample: asked after each evaluation how much of each dataset the next steps learn from; None: as planned.
        stop: asked once a step, on every process, and gives all of them the same answer: whether to save and end.
        track: told what is logged, on every process.
        saved: told, on every process, that a checkpoint was written.

    Other arguments are the recipe's keys; see :class:`nlp_mtl.recipe.TrainingSpec`.

    Raises:
        TrainingError: a loss or a gradient is not a finite number; names step, task and rows.
        TrainingError, ModelError: the encoder cannot be compiled.
        RunError: there is no checkpoint to resume from, or it does not fit, or none can be written.
        RunStopped: ``stop`` said so; a checkpoint was written.
    """
    sharded = accelerator.is_fsdp2
    on_cpu = accelerator.device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
    quick = on_cpu and not sharded  # gradients by rows, and threads that share a step, are for whole models
    model.train()  # a loaded encoder comes with its dropout off
    average = averaged(model, ema_decay)
    for one in dict.fromkeys((model, _scored(model, average))):
        place(one, accelerator)
    drop_held_back = held_back(model, unfreeze_every, len(data))
    optimizer = new_optimizer(
        model,
        plain=plain_steps,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        undecayed=() if anchor is None else anchor.names,
    )
    folder, metrics_file = output_dir / "checkpoints", output_dir / "metrics.jsonl"
    state = TrainingState(data=data.digest())
    if resume:
        state = _resume(folder, model, optimizer, average, data, accelerator)
        balancer.restore(state.balancing)
        if gradients is not None:
            gradients.restore(state.gradients)
        if accelerator.is_main_process:
            metrics_log.cut_after(metrics_file, state.step)
            if state.finished:  # it saves no more: what a crash left after its last save goes now
                checkpoint.rotate(folder, keep_last, keep_best)
        logger.info("Resuming after step %d of %d", state.step, len(data))
    # A sharded model exchanges what there is to exchange by itself.
    prepared, prepared_optimizer = (model, optimizer) if sharded else accelerator.prepare(model, optimizer)
    if gradients is not None:
        gradients.tell_memory()
    num_steps = len(data)
    recorder = LossRecorder(data, tasks, accelerator, state)
    learned = {task.name for task in tasks if task.loss_weight}
    steps = range(num_steps if state.finished else state.step, num_steps)
    progress = Progress(steps.start, num_steps, shown=accelerator.is_main_process, on_terminal=sys.stderr.isatty())
    clear = prepared_optimizer.zero_grad
    if quick:
        clear = partial(zero_gradients, prepared_optimizer, model.get_input_embeddings())
    clear()
    in_two = quick and prepared is model and data.num_threads == 2 and draws_only_quick_dropout(model)
    shared = SharedSteps(model) if in_two else None
    compiled = CompiledLayers(model.encoder) if compile else None

    def passed(compute: ForwardBackward, batches: StepBatches, prepared: nn.Module = prepared) -> Tensor:
        """The losses ([tasks]) of one go over a step's micro-batches; random numbers are the same in each go."""
        # Dropout is a function of the step and the process: nothing to save, nothing to lose.
        step_seed = _step_seed(seed, batches.step, accelerator.process_index)
        torch.manual_seed(step_seed)
        if shared is not None:
            return shared(compute, batches, step_seed)
        if compiled is not None:
            with compiled.step():
                return compute(prepared, batches)
        with quick_step(model, step_seed) if quick else nullcontext():
            return compute(prepared, batches)

    def losses_of(batches: StepBatches) -> Tensor:
        """[tasks] The losses of a step over all processes, with the weights as they are."""
        compute = partial(forward_only, accelerator=accelerator, mixed_precision=mixed_precision)
        # Never by DDP, which exchanges buffers in each pass: processes may have different numbers of micro-batches.
        return over_processes(passed(compute, batches, model), accelerator)

    for batches in loaded_steps(data, steps, num_workers, seed, eval_every if resample else None):
        step = batches.step
        data.remember(batches.cursors)  # where there are workers, they have read the streams
        factor = schedule_factor(step, num_steps, schedule, warmup_fraction)
        set_learning_rates(prepared_optimizer.param_groups, factor)
        present = None if balancer.strategy == "fixed" else present_tasks(batches, tasks, accelerator.device)
        weights = balancer.weights(step, present, losses_of(batches) if balancer.reads_losses else None)
        told: dict[str, Any] = {"weights": weights, "accelerator": accelerator, "mixed_precision": mixed_precision}
        if gradients is not None and gradients.wanted(step):
            losses = passed(partial(gradients.forward_backward, **told), batches, model)
            ahead = LookAhead(partial(losses_of, batches), weights, learning_rate * factor)
            gradients.combine(step, batches.counts, losses, accelerator, ahead)
        else:
            losses = passed(partial(forward_backward, **told), batches)
        for parameter in model.unused_parameters(task for task in learned if batches.counts[task]):
            parameter.grad = None  # no row of the step needs it: no update, no decay
        drop_held_back(step)
        add_penalties(model.named_parameters(), l1_penalty, l2_penalty)
        if anchor is not None:
            anchor.add_gradients(model.named_parameters())
        grad_norm = whole(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf))
        prepared_optimizer.step()
        clear()
        if present is not None:
            next_losses = losses_of(batches) if balancer.reads_next_losses else None
            balancer.update(step, over_processes(losses, accelerator), present, next_losses)
        if average is not None:
            average.update_parameters(model)
        state.step, state.score = step + 1, None
        recorder.add(step, losses, grad_norm, batches.counts, weights)
        progress.step(batches.num_tokens)

        is_last = state.step == num_steps
        evaluating = is_last or (eval_every is not None and state.step % eval_every == 0)
        saving = evaluating or (save_every is not None and state.step % save_every == 0)
        logging_now = is_last or state.step % log_every == 0
        scores: dict[str, Scores] = {}
        if logging_now or saving:
            recorder.fetch()  # stops here if a loss was not a number, before anything is saved
        if logging_now:
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            line = recorder.line(state.step, rates) | (gradients.told() if gradients is not None else {})
            line |= {} if anchor is None else {"l2_to_start": anchor.penalty(model.named_parameters())}
            progress.tell(line["losses"])
            if accelerator.is_main_process:
                metrics_log.append(metrics_file, line)
            for key in ("weights_by_step", "gradient_weights_by_step"):  # trackers draw numbers
                line.pop(key, None)
            track({**line, "tokens_a_second": progress.speed}, state.step)
        if evaluating:
            scores, selection = evaluate(_scored(model, average))
            found: dict[str, Any] = {"step": state.step, "selection_score": selection, "scores": scores}
            if resample is not None and not is_last:
                found["shares"] = resample(scores, recorder.start_anew())
                data.sampler.resample(state.step, [*found["shares"].values()])
            if accelerator.is_main_process:
                metrics_log.append(metrics_file, found)
            track({"selection_score": selection, "validation": scores}, state.step)
            _judge(state, selection, early_stopping_patience)
            _tell(state, num_steps, scores, selection)
            state.finished = state.finished or is_last
        stopping = stop() and not state.finished
        if stopping:
            recorder.fetch()
        if saving or stopping:
            state.pending, state.cursors = recorder.pending(), {name: list(c) for name, c in batches.cursors.items()}
            state.balancing, state.pending_weights = balancer.state(), recorder.pending_weights()
            state.gradients = gradients.state() if gradients is not None else {}
            if resample is not None:
                state.phases, state.losses_since = data.sampler.phases(), recorder.since_evaluation()
            checkpoint.save_checkpoint(
                folder, model, optimizer, state, average and average.module, write=accelerator.is_main_process
            )
            if accelerator.is_main_process:
                checkpoint.rotate(folder, keep_last, keep_best)
            accelerator.wait_for_everyone()
        if stopping:
            raise RunStopped(
                f"stopped after step {state.step} of {num_steps}, which is saved: resume the run from there"
            )
        if saving:
            saved(_scored(model, average), state, scores)
        if state.finished:
            break
        progress.start()
    progress.close()
    recorder.tell_unseen(steps.start, state.step)
    prepared_optimizer.zero_grad()
    if average is not None or state.best_step not in (None, state.step):
        checkpoint.load_best(folder / f"step-{state.best_step or state.step}", model)
    return state


def _resume(
    folder: Path,
    model: MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    data: StepDataset,
    accelerator: Accelerator,
) -> TrainingState:
    newest = checkpoint.newest_sound(folder)
    if newest is None:
        kind = "sound checkpoint" if checkpoint.checkpoints(folder) else "checkpoint"
        raise RunError(f"there is no {kind} to resume from in {folder}; start again, with --overwrite or --resume auto")
    state = checkpoint.restore(newest, model, optimizer, average and average.module)
    if average is not None:
        average.n_averaged.fill_(state.step)  # so that its next update is not taken for its first
    if state.data != data.digest():
        raise RunError(
            f"the training data, or what teachers say of it, has changed since {newest} was written, so the run cannot "
            "be resumed: bring back what was there, or start again, with --overwrite"
        )
    data.remember(state.cursors)
    if state.phases:
        data.sampler.resume(state.phases)
    damaged, best = checkpoint.later_than(newest), folder / f"step-{state.best_step}"
    best_is_lost = state.best_step is not None and best != newest and damage(best) is not None
    if best_is_lost and best.is_dir():
        damaged.append(best)
    accelerator.wait_for_everyone()  # all processes have seen what is there
    if accelerator.is_main_process:
        checkpoint.set_aside(damaged)
    if best_is_lost:
        logger.warning(
            "The checkpoint of step %d, the best so far, is gone or damaged: the best is sought anew", state.best_step
        )
        state.best_step = state.best_score = None
    return state


def _scored(model: MultiTaskModel, average: AveragedModel | None) -> MultiTaskModel:
    """The model that is evaluated and, if it is the best, saved."""
    scored = model if average is None else average.module
    assert isinstance(scored, MultiTaskModel)
    return scored


def _step_seed(seed: int, step: int, process: int) -> int:
    """One number of three, far apart for near ones (a linear congruential mix)."""
    mixed = seed
    for part in (step, process):
        mixed = (mixed * 6364136223846793005 + part * 1442695040888963407 + 1) % 2**63
    return mixed


def _judge(state: TrainingState, selection: float | None, patience: int | None) -> None:
    """Note whether this evaluation is the best, and whether to stop."""
    state.score = selection
    if selection is None:
        return
    if state.best_score is None or selection > state.best_score:
        state.best_step, state.best_score, state.evaluations_without_gain = state.step, selection, 0
    else:
        state.evaluations_without_gain += 1
    state.finished = patience is not None and state.evaluations_without_gain >= patience


def _tell(state: TrainingState, num_steps: int, scores: Mapping[str, Scores], selection: float | None) -> None:
    main = {task: next(iter(values.items())) for task, values in scores.items()}  # the main metric comes first
    parts = [f"{task} {metric} {value:.4f}" for task, (metric, value) in main.items()]
    if selection is not None:
        best = ", the best so far" if state.best_step == state.step else ""
        stop = ", stopping early" if state.finished else ""
        parts.append(f"selection score {selection:.4f}{best}{stop}")
    logger.info("Step %d of %d: %s", state.step, num_steps, "; ".join(parts) or "no validation data to score")
