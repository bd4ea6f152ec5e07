"""GradNorm (Chen et al. 2018, arXiv 1711.02257): weights with which tasks that learn slowly have longer gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nlp_mtl.training.lazy_adam import step_of_present


class GradNorm:
    """One weight a task, learned step by step; they add up to the number of tasks.

    The paper measures gradients on the last layer that tasks share; here it is on all that they share.
    """

    def __init__(self, count: int, alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        """
        Args:
            alpha: how strongly slow tasks are drawn along; 0: all gradients get the same length.
            learning_rate: of Adam; the paper's.
        """
        self.alpha = alpha
        self.weights = torch.nn.Parameter(torch.ones(count, dtype=torch.float64))
        self._first = [math.nan] * count
        self._optimizer = torch.optim.Adam([self.weights], lr=learning_rate)

    @torch.no_grad()
    def update(self, present: Sequence[int], norms: Sequence[float], losses: Sequence[float]) -> None:
        """Learn from a step.

        Args:
            present: the places of the tasks that have a gradient in it.
            norms: of their gradients, not weighted by these weights.
            losses: of all tasks; those that are not present do not matter.
        """
        for place in present:
            if math.isnan(self._first[place]):
                self._first[place] = losses[place]
        chosen = torch.tensor(present)
        lengths = torch.tensor(norms, dtype=torch.float64)
        ratios = torch.tensor([losses[place] / max(self._first[place], 1e-8) for place in present], dtype=torch.float64)
        weighted = self.weights[chosen] * lengths
        wanted = weighted.mean() * (ratios / ratios.mean().clamp(min=1e-8)) ** self.alpha
        gradient = torch.zeros_like(self.weights)
        gradient[chosen] = torch.sign(weighted - wanted) * lengths / lengths.mean()  # of the sum of |weighted - wanted|
        is_present = torch.zeros(len(self.weights), dtype=torch.bool).index_fill_(0, chosen, True)
        step_of_present(self._optimizer, self.weights, gradient, is_present)
        self.weights.clamp_(min=1e-3)
        self.weights.mul_(len(self.weights) / self.weights.sum())

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on, as plain values."""
        moments = self._optimizer.state[self.weights]
        first = [None if math.isnan(one) else one for one in self._first]
        return {"weights": self.weights.tolist(), "first": first, **{key: one.tolist() for key, one in moments.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""
        self.weights.data = torch.tensor(state["weights"], dtype=torch.float64)
        self._first = [math.nan if one is None else one for one in state["first"]]
        if "step" in state:
            moments = {key: torch.tensor(state[key], dtype=torch.float64) for key in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[self.weights] = {"step": torch.tensor(float(state["step"])), **moments}
