"""One micro-batch of the tiny corpus, packed or padded, and what a model learns from it."""

import torch
from accelerate.utils import send_to_device
from mixed_steps import TASKS, framing, splits
from tiny import FAMILIES
from torch import Tensor

from nlp_mtl.data.batches import MicroBatch, collate
from nlp_mtl.data.items import read_items
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.balancing import summed_loss

FIXED = {"deberta-v2", "mpnet"}
PACKABLE = sorted(set(FAMILIES) - FIXED)


def micro_batch(*, packed: bool, labelled: bool = True, device: str = "cpu") -> MicroBatch:
    """All rows of the tiny corpus, one of them empty, some of them windows of a long text."""
    items = [one for split in splits() for one in read_items(split, range(len(split)), TASKS, framing())]
    if not labelled:
        items = [one._replace(labels={}) for one in items]
    batch: MicroBatch = send_to_device(collate(items, TASKS, framing(), packed=packed), device)
    return batch


def loss_and_gradients(model: MultiTaskModel, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(**batch.inputs, rows={task: rows.rows for task, rows in batch.tasks.items()})
    loss = torch.stack([summed_loss(logits[task], rows) for task, rows in batch.tasks.items()]).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
