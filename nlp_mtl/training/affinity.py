"""Inter-task affinity (Fifty et al. 2021, "TAG", arXiv 2109.04617): what a step for one task does for the others.

The affinity of a task for another is 1 - L' / L: L is the other's loss on the rows of a step, L' the same after the
shared parameters have made a plain gradient step for the first task alone. Nothing of that step stays.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nlp_mtl.tasks import Task


class LookAhead(NamedTuple):
    """What it takes to try a step."""

    losses: Callable[[], Tensor]
    """[tasks] Those of the step's rows over all processes, with the parameters as they then are."""
    weights: Tensor
    """[tasks] What the gradients are weighted with."""
    learning_rate: float


class Affinities:
    """Measured now and then, told as means."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.names = [task.name for task in tasks]
        self._sums: dict[str, dict[str, list[float]]] = {}

    @torch.no_grad()
    def measure(
        self,
        shared: Sequence[nn.Parameter],
        rows: Sequence[Sequence[Tensor | None]],
        present: Sequence[int],
        losses: Tensor,
        ahead: LookAhead,
    ) -> None:
        """Try a step for each task that has a weight.

        Args:
            shared: the parameters; they end as they were, bit for bit.
            rows: the gradients of the tasks' weighted losses on them.
            present: the places of tasks with labelled items in the step.
            losses: [tasks] before, over all processes, not weighted.
        """
        before, weights = losses.tolist(), ahead.weights.tolist()
        kept = [parameter.detach().clone() for parameter in shared]
        for one in present:
            if not weights[one]:
                continue
            for parameter, gradient in zip(shared, rows[one], strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=-ahead.learning_rate / weights[one])
            after = ahead.losses().tolist()
            for parameter, values in zip(shared, kept, strict=True):
                parameter.copy_(values)
            sums = self._sums.setdefault(self.names[one], {})
            for other in present:
                if before[other] > 0:
                    total = sums.setdefault(self.names[other], [0.0, 0])
                    total[:] = total[0] + 1 - after[other] / before[other], total[1] + 1

    def told(self) -> dict[str, dict[str, dict[str, float]]]:
        """``{"affinities": {one: {other: mean}}}`` since the last call; empty if nothing was measured."""
        found = {
            one: {other: total / count for other, (total, count) in others.items()}
            for one, others in self._sums.items()
        }  # fmt: skip
        self._sums = {}
        return {"affinities": found} if found else {}

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on, as plain values."""
        return {one: {other: list(total) for other, total in others.items()} for one, others in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""
        self._sums = {one: {other: list(total) for other, total in others.items()} for one, others in state.items()}
