"""How the tasks' losses become one: each task's own loss, summed, and weights, fixed or found while training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlp_mtl.data.batches import TaskRows
from nlp_mtl.task_types import KINDS, crf, kind_of
from nlp_mtl.tasks import Task
from nlp_mtl.training.lazy_adam import step_of_present
from nlp_mtl.training.loss_weights import (
    averaging_weights,
    famo_gradient,
    famo_weights,
    log_weights,
    maximum_weights,
    random_weights,
)

LEARNED = {"uncertainty": (1e-3, 0.0), "imtl_l": (1e-3, 0.0), "famo": (0.025, 1e-3)}
"""Of strategies that learn: learning rate and weight decay; FAMO's are those
of its authors' experiments on QM9 (others of theirs decay ten times more, or a hundredth)."""
READ_LOSSES = ("log", "maximum", "smooth_maximum", "famo")
"""Strategies whose weights depend on the losses of the very step: a forward pass more."""


def summed_loss(logits: Tensor, rows: TaskRows, transitions: Tensor | None = None) -> Tensor:
    """The sum of a task's loss over its labelled items in a micro-batch; 0 where it has none.

    Where it has a teacher, it is the loss of both: of labels and of soft targets, as :class:`SoftRows` weighs them.

    Args:
        logits: [r, tokens, labels] or [r, labels].
        rows: their labels and weights.
        transitions: of a task with the decoder ``crf``, as the model gives them.
    """
    if rows.chains is not None:
        assert transitions is not None
        return crf.summed_loss(logits, transitions, rows.labels, rows.chains)
    kind = KINDS[rows.type]
    of_labels = kind.summed_loss(logits, rows.labels, rows.weights, rows.loss)
    if rows.soft is None:
        return of_labels
    divergences = kind.divergence(logits, rows.soft.logits, rows.soft.temperature)
    return rows.soft.label_weight * of_labels + (divergences * rows.soft.weights).sum()


def guess_loss(task: Task) -> float:
    """What an item loses that is guessed.

    Raises:
        ValueError: the task has no labels that would tell.
    """
    of_kind = kind_of(task).guess_loss
    if of_kind is None:
        raise ValueError(f"nobody knows what guessing loses in the {task.type} task `{task.name}`: it has no labels")
    return of_kind(task)


def weighted_sum(sums: Mapping[str, Tensor], counts: Mapping[str, int], weights: Tensor) -> tuple[Tensor, Tensor]:
    """One loss of the tasks' summed losses in a micro-batch.

    A task's loss in a step is the sum over its labelled items divided by their number in the whole step, over
    all micro-batches and processes: so it does not depend on how the step was laid out.

    Args:
        sums: ``{task: summed loss}`` of the micro-batch.
        counts: ``{task: labelled items}`` of the whole step.
        weights: [tasks] in the order of ``sums``.

    Returns:
        the loss to run backward from, and the tasks' shares of their losses ([tasks], detached, unweighted).
    """
    shares = torch.stack([value / max(counts[task], 1) for task, value in sums.items()])
    return (weights * shares).sum(), shares.detach()


class Balancer:
    """The weights of the tasks' losses, step by step.

    A strategy's weights stand beside the fixed ones: what a task counts is the product of both. Those that make losses
    alike look at losses without ``loss_weight``, or they would undo it; the largest is that of the weighted losses.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        strategy: str = "fixed",
        *,
        scale: str = "none",
        temperature: float = 2.0,
        learning_rate: float | None = None,
        period: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            strategy: see the recipe's ``balancing``.
            scale: ``log_classes``: losses are divided by what guessing would lose, the logarithm of the number of
                labels (Aghajanyan et al. 2021, "MUPPET", arXiv 2101.11038). Not for tasks without labels.
            temperature: of ``dwa`` and ``smooth_maximum``.
            learning_rate: of learned weights; None: the strategy's own.
            period: steps over which ``dwa`` averages losses.
            seed: of ``random``.
        """
        self.strategy, self.temperature, self.period, self.seed = strategy, temperature, period, seed
        scales = [guess_loss(task) if scale == "log_classes" else 1.0 for task in tasks]
        self._scales = torch.tensor(scales, device=device)
        self.fixed = torch.tensor([task.loss_weight for task in tasks], device=device) / self._scales
        self.reads_losses = strategy in READ_LOSSES
        self.reads_next_losses = strategy == "famo"
        self.means = torch.full((2, len(tasks)), math.nan, device=device)
        """[2, tasks] Mean losses of the last two periods, the older first; not a number: not seen yet."""
        self._sums = torch.zeros(2, len(tasks), device=device)  # of this period: losses, and steps that had one
        self.learned: nn.Parameter | None = None
        if strategy in LEARNED:
            own_rate, decay = LEARNED[strategy]
            self.learned = nn.Parameter(torch.zeros(len(tasks), device=device))
            rate = own_rate if learning_rate is None else learning_rate
            self._optimizer = torch.optim.Adam([self.learned], lr=rate, weight_decay=decay)

    @torch.no_grad()
    def weights(self, step: int, present: Tensor | None = None, losses: Tensor | None = None) -> Tensor:
        """[tasks] The weights of a step.

        Args:
            present: [tasks] whether a task has labelled items in the step; the strategy ``fixed`` does not ask.
            losses: [tasks] of the step, where ``reads_losses``.
        """
        if present is None:
            return self.fixed
        return self.fixed * self._own_weights(step, present & (self.fixed > 0), losses)

    def _own_weights(self, step: int, present: Tensor, losses: Tensor | None) -> Tensor | float:
        if self.strategy == "random":
            return random_weights(len(self.fixed), self.seed, step).to(self.fixed.device)
        if self.strategy == "dwa":
            return averaging_weights(self.means[0], self.means[1], self.temperature)
        if self.strategy in ("uncertainty", "imtl_l"):
            assert self.learned is not None
            return torch.exp(-self.learned if self.strategy == "uncertainty" else self.learned)
        if self.reads_losses:
            assert losses is not None
            if self.strategy == "log":
                return log_weights(losses / self._scales, present)
            if self.strategy == "famo":
                assert self.learned is not None
                return famo_weights(self.learned, losses / self._scales, present)
            temperature = self.temperature if self.strategy == "smooth_maximum" else 0.0
            return maximum_weights(losses * self.fixed, present, temperature)
        return 1.0

    @torch.no_grad()
    def update(self, step: int, losses: Tensor, present: Tensor, next_losses: Tensor | None = None) -> None:
        """Learn from a step that was made.

        Args:
            losses: [tasks] of the step, over all processes, before its update.
            next_losses: [tasks] of the same rows after the update, where ``reads_next_losses``.
        """
        if self.strategy == "dwa":
            self._sums += torch.stack([torch.where(present, losses, 0.0), present.float()])
            if (step + 1) % self.period == 0:
                self.means[0] = self.means[1]
                self.means[1] = torch.where(self._sums[1] > 0, self._sums[0] / self._sums[1], self.means[1])
                self._sums.zero_()
        if self.learned is None:
            return
        scaled, present = losses / self._scales, present & (self.fixed > 0)
        if self.strategy == "uncertainty":  # of exp(-s) L + s / 2
            gradient = 0.5 - torch.exp(-self.learned) * scaled
        elif self.strategy == "imtl_l":  # of exp(s) L - s
            gradient = torch.exp(self.learned) * scaled - 1
        else:
            assert next_losses is not None
            gradient = famo_gradient(self.learned, scaled, next_losses / self._scales, present)
        step_of_present(self._optimizer, self.learned, torch.where(present, gradient, 0.0), present)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on, as plain values."""
        if self.strategy == "dwa":
            return {"means": _texts(self.means), "sums": _texts(self._sums)}
        if self.learned is None:
            return {}
        moments = self._optimizer.state[self.learned]
        return {"learned": self.learned.tolist(), **{key: value.tolist() for key, value in moments.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""
        if "means" in state:
            self.means.copy_(torch.tensor([[float(value) for value in row] for row in state["means"]]))
            self._sums.copy_(torch.tensor([[float(value) for value in row] for row in state["sums"]]))
        elif self.learned is not None and "learned" in state:
            self.learned.data.copy_(torch.tensor(state["learned"]))
            moments = {key: torch.tensor(value, device=self.learned.device) for key, value in state.items()}
            del moments["learned"]
            if moments:
                moments["step"] = moments["step"].cpu().float()  # where Adam keeps it
            self._optimizer.state[self.learned] = moments


def _texts(values: Tensor) -> list[list[str]]:
    """Numbers as JSON can hold them: not a number as well."""
    return [[repr(float(value)) for value in row] for row in values.tolist()]
