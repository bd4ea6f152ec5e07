"""One gradient a task on the parameters that tasks share, and how they become one update.

A micro-batch of such a step holds rows of the same tasks. It goes through the encoder once, and back once for each of
its tasks, so that a row with one task costs what it always costs. Gradients add up in one matrix, [tasks, shared
parameters], and are exchanged by processes as that matrix; all that the methods look at is its Gramian.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from nlp_mtl.data.steps import StepBatches
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task
from nlp_mtl.training.gradient_weights import (
    Array,
    aligned_weights,
    bargained_weights,
    conflict_averse_weights,
    fair_weights,
    impartial_weights,
    projected_weights,
    shortest_weights,
    unconflicting_weights,
    vaccinated_weights,
)
from nlp_mtl.training.passes import summed_losses

logger = logging.getLogger(__name__)


class TaskGradients:
    """The gradients of tasks on a model's shared parameters (the encoder's), step by step.

    The parameters of heads have the gradient of their own task's loss, whatever the strategy.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        strategy: str,
        *,
        measure_every: int | None = None,
        c: float = 0.5,
        alpha: float = 2.0,
        beta: float = 0.01,
        seed: int = 0,
    ) -> None:
        """
        Args:
            strategy: see the recipe's ``gradients``.
            measure_every: under ``sum``, the steps in which gradients are told apart; None: in none.
            c: of ``cagrad``.
            alpha: of ``fairgrad``.
            beta: of ``gradvac``.
            seed: of the order in which ``pcgrad`` and ``gradvac`` go through tasks.
        """
        self.model, self.tasks, self.strategy, self.measure_every = model, list(tasks), strategy, measure_every
        self.c, self.alpha, self.beta, self.seed = c, alpha, beta, seed
        self.targets = np.zeros((len(tasks), len(tasks)))
        self._weights = [1.0] * len(tasks)
        self._gramian: Array | None = None
        self._present: list[int] = []
        self._buffers: dict[MultiTaskModel, Tensor] = {}

    def wanted(self, step: int) -> bool:
        """Whether gradients are told apart in a step."""
        return self.strategy != "sum" or (self.measure_every is not None and step % self.measure_every == 0)

    def tell_memory(self) -> None:
        """Log what telling gradients apart will hold."""
        count = sum(p.numel() for p in _shared(self.model))
        logger.info(
            "The gradients of %d tasks on %.1f million shared parameters take %.2f GB, once more where two threads "
            "share a step", len(self.tasks), count / 1e6, len(self.tasks) * count * 4 / 2**30,
        )  # fmt: skip

    def forward_backward(
        self,
        model: nn.Module,
        batches: StepBatches,
        weights: Tensor,
        accelerator: Accelerator,
        mixed_precision: str,
    ) -> Tensor:
        """As :func:`nlp_mtl.training.passes.forward_backward`, of a model or its twin; keeps gradients apart."""
        assert isinstance(model, MultiTaskModel)
        shared, places = _shared(model), {task.name: place for place, task in enumerate(self.tasks)}
        rows = self._rows(model)
        losses = torch.zeros(len(weights), device=weights.device)
        for micro_batch in batches.micro_batches:
            present = {task: rows for task, rows in micro_batch.tasks.items() if len(rows.rows)}
            sums = summed_losses(model, micro_batch._replace(tasks=present), accelerator, mixed_precision)
            for number, (task, value) in enumerate(sums.items()):
                place = places[task]
                share = value / max(batches.counts[task], 1)
                losses[place] += share.detach()
                with _gradients_in(shared, rows[place]):
                    (weights[place] * share).backward(retain_graph=number < len(sums) - 1)
        return losses

    def combine(self, step: int, counts: Mapping[str, int], accelerator: Accelerator) -> None:
        """Give the model its gradients of a step: over all processes, of tasks with labelled items in it."""
        twins = [rows for model, rows in self._buffers.items() if model is not self.model]
        rows = self._rows(self.model)
        for other in twins:
            rows += other
            other.zero_()
        if accelerator.num_processes > 1:
            self._exchange(rows, accelerator)
        shared = _shared(self.model)
        gramian = _gramian(rows, [p.numel() for p in shared])
        self._present = [
            place for place, task in enumerate(self.tasks)
            if counts[task.name] and task.loss_weight and gramian[place, place] != 0
        ]  # fmt: skip
        self._gramian = gramian
        weights = np.ones(len(self.tasks))
        if len(self._present) > 1 and np.isfinite(gramian).all():  # what is not finite is told when it is logged
            weights[self._present] = self._found(step, gramian[np.ix_(self._present, self._present)])
        told = broadcast(torch.tensor(weights, dtype=torch.float32, device=rows.device))  # rounding is not shared
        self._weights = told.tolist()
        total = told @ rows
        rows.zero_()
        for parameter, gradient in zip(shared, total.split([p.numel() for p in shared]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _found(self, step: int, gramian: Array) -> Array:
        order = np.random.default_rng((self.seed, step))
        if self.strategy == "pcgrad":
            return projected_weights(gramian, order)
        if self.strategy == "gradvac":
            chosen = np.ix_(self._present, self._present)
            weights, self.targets[chosen] = vaccinated_weights(gramian, self.targets[chosen], self.beta, order)
            return weights
        if self.strategy == "cagrad":
            return conflict_averse_weights(gramian, self.c)
        if self.strategy == "fairgrad":
            return fair_weights(gramian, self.alpha)
        by_gramian = {
            "sum": lambda given: np.ones(len(given)), "mgda": shortest_weights, "imtl_g": impartial_weights,
            "nash_mtl": bargained_weights, "aligned_mtl": aligned_weights, "upgrad": unconflicting_weights,
        }  # fmt: skip
        return by_gramian[self.strategy](gramian)

    def _exchange(self, rows: Tensor, accelerator: Accelerator) -> None:
        """Sum up over processes: the rows, and the gradients of heads, of which a process may have none."""
        rows.copy_(accelerator.reduce(rows, "sum"))
        own = [parameter for parameter in self.model.heads.parameters() if parameter.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in own])
        summed = accelerator.reduce(flat, "sum")
        assert isinstance(summed, Tensor)
        for parameter, gradient in zip(own, summed.split([p.numel() for p in own]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _rows(self, model: MultiTaskModel) -> Tensor:
        """[tasks, shared parameters], zeros at first."""
        if model not in self._buffers:
            first = next(model.parameters())
            count = sum(p.numel() for p in _shared(model))
            self._buffers[model] = torch.zeros(len(self.tasks), count, device=first.device, dtype=first.dtype)
        return self._buffers[model]

    def told(self) -> dict[str, Any]:
        """Of the last step: what each task's gradient counted, and the cosines of each two."""
        if self._gramian is None:
            return {}
        names = [task.name for task in self.tasks]
        norms = np.sqrt(np.diag(self._gramian))
        cosines = {
            f"{names[one]}/{names[other]}": float(self._gramian[one, other] / (norms[one] * norms[other]))
            for one in self._present for other in self._present if one < other
        }  # fmt: skip
        return {"gradient_weights": dict(zip(names, self._weights, strict=True)), "gradient_cosines": cosines}

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on, as plain values."""
        return {"targets": self.targets.tolist()} if self.strategy == "gradvac" else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""
        if "targets" in state:
            self.targets = np.array(state["targets"])


def _shared(model: MultiTaskModel) -> list[nn.Parameter]:
    return [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]


@contextmanager
def _gradients_in(parameters: Sequence[nn.Parameter], row: Tensor) -> Iterator[None]:
    """Within it, gradients add up in a row; outside, parameters have none."""
    for parameter, part in zip(parameters, row.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None


def _gramian(rows: Tensor, sizes: Sequence[int]) -> Array:
    """[tasks, tasks], added up in float64 over parameters."""
    products = [part @ part.T for part in rows.split(list(sizes), dim=1)]
    found: Array = torch.stack(products).double().sum(dim=0).cpu().numpy()
    return found
