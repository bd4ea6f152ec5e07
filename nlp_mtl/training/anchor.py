"""Weights drawn back to where they started, so that what they knew is not lost."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from nlp_mtl.models.fully_sharded import part_of, whole


class Anchor:
    """The penalty ``strength / 2 * sum(importance * (w - start) ** 2)`` on weights that have a start.

    With all weights of the same importance it is L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483);
    with the diagonal of the Fisher information, elastic weight consolidation (Kirkpatrick et al. 2017, arXiv
    1612.00796).
    """

    def __init__(
        self, start: Mapping[str, Tensor], strength: float, importance: Mapping[str, Tensor] | None = None
    ) -> None:
        """
        Args:
            start: weights by the names of their parameters, whole.
            importance: of the shapes of ``start``; None: 1 each. Weights that are not named count nothing.
        """
        self.start, self.strength, self.importance = start, strength, importance
        self.names = frozenset(start if importance is None else importance)
        self._placed: dict[str, tuple[Tensor, Tensor | None]] = {}

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Add the penalty's gradients, where a weight learns in a step: after the loss's, which all processes share."""
        for name, parameter in parameters:
            if name in self.names and parameter.grad is not None:
                parameter.grad.add_(self._pull(name, parameter), alpha=self.strength)

    @torch.no_grad()
    def penalty(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> float:
        """What it adds to the loss now. All processes have to call it where they share a model."""
        total = 0.0
        for name, parameter in parameters:
            if name in self.names and parameter.requires_grad:
                start, _ = self._at(name, parameter)
                total += float(whole((self._pull(name, parameter) * (parameter - start)).sum()))
        return self.strength / 2 * total

    def _pull(self, name: str, parameter: nn.Parameter) -> Tensor:
        start, importance = self._at(name, parameter)
        return parameter - start if importance is None else (parameter - start).mul_(importance)

    def _at(self, name: str, parameter: nn.Parameter) -> tuple[Tensor, Tensor | None]:
        """Start and importance where the parameter is: on its device, and of its part."""
        if name not in self._placed:
            importance = None if self.importance is None else _beside(self.importance[name], parameter)
            self._placed[name] = (_beside(self.start[name], parameter), importance)
        return self._placed[name]


def _beside(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    return part_of(tensor, parameter).to(parameter.device)
