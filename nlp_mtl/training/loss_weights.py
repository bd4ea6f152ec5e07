"""Weights of losses as their papers define them: pure functions of losses and what was learned, [tasks] each."""

import torch
from torch import Tensor

_LEAST = 1e-8


def random_weights(count: int, seed: int, step: int) -> Tensor:
    """Random loss weighting (Lin et al. 2022, arXiv 2111.10603): softmax of normal numbers, scaled to 1 on average."""
    draw = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.softmax(torch.randn(count, generator=draw), dim=0) * count


def averaging_weights(older: Tensor, newer: Tensor, temperature: float) -> Tensor:
    """Dynamic weight average (Liu et al. 2019, arXiv 1803.10704): more for tasks whose losses fall more slowly.

    Args:
        older, newer: mean losses of the last two periods; where one is not a number, the ratio is 1, as in the paper's
            first two epochs.
        temperature: large ones approach equal weights; the paper takes 2.
    """
    ratio = newer / older
    ratio = torch.where(torch.isfinite(ratio), ratio, 1.0)
    return torch.softmax(ratio / temperature, dim=0) * len(ratio)


def log_weights(losses: Tensor, present: Tensor) -> Tensor:
    """Those of the sum of the losses' logarithms (Lin et al. 2023, "DB-MTL", arXiv 2308.12029): one over the loss.

    Args:
        present: [tasks] whether a task has a loss.
    """
    return torch.where(present, 1 / losses.clamp(min=_LEAST), 0.0)


def maximum_weights(losses: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Those of the largest loss, or smoothly of T log sum exp(loss / T): the softmax of losses by T.

    Args:
        present: [tasks] whether a task has a loss.
        temperature: T; 0: the largest alone.
    """
    known = torch.where(present, losses, -torch.inf)
    if temperature == 0:
        return torch.nn.functional.one_hot(known.argmax(), len(losses)).to(losses.dtype)
    return torch.where(present, torch.softmax(known / temperature, dim=0), 0.0)


def famo_weights(logits: Tensor, losses: Tensor, present: Tensor) -> Tensor:
    """FAMO (Liu et al. 2023, arXiv 2306.03792): z / loss, scaled to sum to 1; z is the softmax of what is learned."""
    shares = torch.where(present, torch.softmax(logits, dim=0) / losses.clamp(min=_LEAST), 0.0)
    return shares / shares.sum().clamp(min=_LEAST)


def famo_gradient(logits: Tensor, losses: Tensor, next_losses: Tensor, present: Tensor) -> Tensor:
    """How FAMO's logits are to fall: tasks whose loss fell less than others' by this step's update get more.

    Args:
        next_losses: of the same rows after the update.
    """
    fell = torch.where(present, (losses.clamp(min=_LEAST).log() - next_losses.clamp(min=_LEAST).log()), 0.0)
    shares = torch.softmax(logits, dim=0)
    return shares * (fell - (shares * fell).sum())  # the softmax's Jacobian times what fell
