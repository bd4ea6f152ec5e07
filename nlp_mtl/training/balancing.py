"""How the tasks' losses become one: each task's own loss, summed, and fixed weights."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nlp_mtl.data.batches import TaskRows
from nlp_mtl.data.labels import MISSING


def summed_loss(logits: Tensor, rows: TaskRows) -> Tensor:
    """The sum of a task's cross-entropy over its labelled items in a micro-batch; 0 where it has none.

    Args:
        logits: [r, tokens, labels] or [r, labels].
        rows: their labels and weights.
    """
    if logits.ndim == 3:
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), rows.labels.flatten(), ignore_index=MISSING, reduction="sum"
        )
    losses = functional.cross_entropy(logits.float(), rows.labels, reduction="none")
    return (losses * rows.weights).sum()


def weighted_sum(
    sums: Mapping[str, Tensor], counts: Mapping[str, int], loss_weights: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """One loss of the tasks' summed losses in a micro-batch.

    A task's loss in a step is the sum over its labelled items divided by their number in the whole step, over
    all micro-batches and processes: so it does not depend on how the step was laid out.

    Args:
        sums: ``{task: summed loss}`` of the micro-batch.
        counts: ``{task: labelled items}`` of the whole step.
        loss_weights: ``{task: weight}``, fixed.

    Returns:
        the loss to run backward from, and the tasks' shares of their losses ([tasks], detached, unweighted).
    """
    shares = {task: value / max(counts[task], 1) for task, value in sums.items()}
    total = torch.stack([loss_weights[task] * share for task, share in shares.items()]).sum()
    return total, torch.stack([share.detach() for share in shares.values()])
