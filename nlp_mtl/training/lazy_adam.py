"""Adam on one number a task, of which a step may have some alone."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def step_of_present(optimizer: torch.optim.Adam, learned: nn.Parameter, gradient: Tensor, present: Tensor) -> None:
    """A step of the numbers of tasks that a training step has; those of others stay, and so do their moments.

    Adam would move them on by what earlier steps left behind; the same is why torch has ``SparseAdam``.

    Args:
        learned: [tasks]
        present: [tasks] Booleans.
    """
    before = learned.clone()
    moments = {key: value.clone() for key, value in optimizer.state[learned].items() if value.dim()}
    learned.grad = gradient
    optimizer.step()
    learned.copy_(torch.where(present, learned, before))
    for key, value in optimizer.state[learned].items():
        if value.dim():
            value.copy_(torch.where(present, value, moments.get(key, torch.zeros_like(value))))
