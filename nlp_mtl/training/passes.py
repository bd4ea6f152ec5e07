"""Going over the micro-batches of a step: losses of tasks, with gradients or without."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from nlp_mtl.data.batches import MicroBatch
from nlp_mtl.data.steps import StepBatches
from nlp_mtl.models.fully_sharded import is_sharded
from nlp_mtl.models.precision import autocast
from nlp_mtl.tasks import Task, transitions_key
from nlp_mtl.training.balancing import summed_loss, weighted_sum


def forward_backward(
    model: torch.nn.Module,
    batches: StepBatches,
    weights: Tensor,
    accelerator: Accelerator,
    mixed_precision: str,
) -> Tensor:
    """Gradients of micro-batches of a step; returns their share of the tasks' losses ([tasks])."""
    losses = torch.zeros(len(weights), device=accelerator.device)
    last = len(batches.micro_batches) - 1
    for number, micro_batch in enumerate(batches.micro_batches):
        # Gradients of all micro-batches are reduced together, by the last one. Those of a sharded model are by each: a
        # process would have to keep the whole model's until then.
        with nullcontext() if number == last or is_sharded(model) else accelerator.no_sync(model):
            sums = summed_losses(model, micro_batch, accelerator, mixed_precision)
            loss, shares = weighted_sum(sums, batches.counts, weights)
            # DDP and FSDP average over processes; our losses are already divided by the counts of the whole step.
            accelerator.backward(loss * accelerator.num_processes)
        losses += shares
    return losses


@torch.no_grad()  # of each thread for itself
def forward_only(
    model: torch.nn.Module, batches: StepBatches, accelerator: Accelerator, mixed_precision: str
) -> Tensor:
    """Micro-batches' share of the tasks' losses ([tasks]), without gradients."""
    found = []
    for micro_batch in batches.micro_batches:
        sums = summed_losses(model, micro_batch, accelerator, mixed_precision)
        found.append(weighted_sum(sums, batches.counts, torch.ones(len(sums), device=accelerator.device))[1])
    return torch.stack(found).sum(dim=0) if found else torch.zeros(len(batches.counts), device=accelerator.device)


def summed_losses(
    model: torch.nn.Module, micro_batch: MicroBatch, accelerator: Accelerator, mixed_precision: str
) -> dict[str, Tensor]:
    """``{task: summed loss}`` of a micro-batch that is not yet on the device."""
    inputs, task_rows = send_to_device(micro_batch, accelerator.device, non_blocking=True)
    with autocast(accelerator.device, mixed_precision, is_sharded(model)):
        logits = model(**inputs, rows={task: rows.rows for task, rows in task_rows.items()})
    return {
        task: summed_loss(logits[task], rows, logits.get(transitions_key(task))) for task, rows in task_rows.items()
    }


def present_tasks(batches: StepBatches, tasks: Sequence[Task], device: torch.device) -> Tensor:
    """[tasks] Whether a task has labelled items in a step."""
    return torch.tensor([batches.counts[task.name] > 0 for task in tasks]).to(device, non_blocking=True)


def over_processes(losses: Tensor, accelerator: Accelerator) -> Tensor:
    """[tasks] The sum over processes."""
    total = accelerator.reduce(losses.clone(), "sum")
    assert isinstance(total, Tensor)
    return total
