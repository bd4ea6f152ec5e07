"""Inter-task affinity (Fifty et al. 2021, "TAG", arXiv 2109.04617): what a step for one task does for the others.

The affinity of a task for another is 1 - L' / L: L is the other's loss on the rows of a step, L' the same after the
shared parameters have made a plain gradient step for the first task alone. Nothing of that step stays.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nlp_mtl.tasks import Task


class Affinities:
    """Measured now and then, told as means."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.names = [task.name for task in tasks]
        self._sums: dict[str, list[float]] = {}

    @torch.no_grad()
    def measure(
        self,
        shared: Sequence[nn.Parameter],
        rows: Sequence[Sequence[Tensor | None]],
        present: Sequence[int],
        losses: Tensor,
        losses_anew: Callable[[], Tensor],
        learning_rate: float,
    ) -> None:
        """Try a step for each task.

        Args:
            shared: the parameters; they end as they were, bit for bit.
            rows: the tasks' gradients on them.
            present: the places of tasks with labelled items in the step.
            losses: [tasks] before, over all processes.
            losses_anew: the same, with the weights as they then are.
        """
        before = losses.tolist()
        kept = [parameter.detach().clone() for parameter in shared]
        for one in present:
            for parameter, gradient in zip(shared, rows[one], strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=-learning_rate)
            after = losses_anew().tolist()
            for parameter, values in zip(shared, kept, strict=True):
                parameter.copy_(values)
            for other in present:
                if before[other] > 0:
                    total = self._sums.setdefault(f"{self.names[one]}>{self.names[other]}", [0.0, 0])
                    total[:] = total[0] + 1 - after[other] / before[other], total[1] + 1

    def told(self) -> dict[str, dict[str, float]]:
        """``{"affinities": {"one>other": mean}}`` since the last call; empty if nothing was measured."""
        found = {pair: total / count for pair, (total, count) in self._sums.items()}
        self._sums = {}
        return {"affinities": found} if found else {}

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on, as plain values."""
        return {pair: list(total) for pair, total in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""
        self._sums = {pair: list(total) for pair, total in state.items()}
