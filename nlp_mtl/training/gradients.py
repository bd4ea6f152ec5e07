"""One gradient a task on the parameters that tasks share, and how they become one update.

A micro-batch of such a step holds rows of the same tasks. It goes through the encoder once, and back once for each of
its tasks, so that a row with one task costs what it always costs. Processes exchange the gradients of all tasks; all
that the methods look at is their Gramian.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from nlp_mtl.data.steps import StepBatches
from nlp_mtl.errors import ModelError, listed
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task
from nlp_mtl.training.affinity import Affinities, LookAhead
from nlp_mtl.training.freezing import layer_depths
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
from nlp_mtl.training.gradnorm import GradNorm
from nlp_mtl.training.passes import over_processes, summed_losses

logger = logging.getLogger(__name__)

_CACHED = 32_768
"""So many numbers of each task's gradient are multiplied at once on CPU: their copies stay in a core's cache."""

Row = list[Tensor | None]
"""A task's gradients on the shared parameters; None: it has none there."""


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
        look_ahead: bool = False,
        measured_layers: Sequence[int] = (),
        c: float = 0.5,
        alpha: float | None = None,
        beta: float = 0.01,
        learning_rate: float = 0.025,
        seed: int = 0,
    ) -> None:
        """
        Args:
            strategy: see the recipe's ``gradients``.
            measure_every: under ``sum``, the steps in which gradients are told apart; None: in none. Under any, those
                in which affinities are measured.
            look_ahead: measure affinities.
            measured_layers: those of the encoder that :meth:`told` compares, 0 for embeddings; none: all.
            c: of ``cagrad``.
            alpha: of ``fairgrad`` (None: 2) and ``gradnorm`` (None: 1.5).
            beta: of ``gradvac``.
            learning_rate: of ``gradnorm``.
            seed: of the order in which ``pcgrad`` and ``gradvac`` go through tasks.

        Raises:
            ModelError: the encoder has no such layer, or it does not learn.
        """
        self.model, self.tasks, self.strategy, self.measure_every = model, list(tasks), strategy, measure_every
        self.c, self.beta, self.seed = c, beta, seed
        self.alpha = alpha if alpha is not None else 2.0
        self._gradnorm: GradNorm | None = None
        if strategy == "gradnorm":
            self._gradnorm = GradNorm(len(tasks), alpha if alpha is not None else 1.5, learning_rate)
        depths = layer_depths(model)
        self._measured = [
            not measured_layers or depths[name] in measured_layers for name, _ in shared_parameters(model)
        ]
        learning = {depth for name, _ in shared_parameters(model) if (depth := depths[name]) is not None}
        if missing := set(measured_layers) - learning:
            raise ModelError(
                f"gradients.measured_layers: {listed(sorted(missing))} is no layer of the encoder that learns; "
                f"there are {listed(sorted(learning))}"
            )
        self.targets = np.zeros((len(tasks), len(tasks)))
        self.affinities = Affinities(tasks) if look_ahead else None
        self._weights: list[dict[str, float]] = []
        self._cosines: dict[str, list[float]] = {}
        self._rows: dict[MultiTaskModel, list[Row]] = {}
        self._zeros: list[Tensor | None] = []

    def wanted(self, step: int) -> bool:
        """Whether gradients are told apart in a step."""
        return self.strategy != "sum" or self._measures(step)

    def _measures(self, step: int) -> bool:
        return self.measure_every is not None and step % self.measure_every == 0

    def tell_memory(self) -> None:
        """Log what telling gradients apart will hold."""
        count = sum(parameter.numel() for _, parameter in shared_parameters(self.model))
        logger.info(
            "The gradients of %d tasks on %.1f million shared parameters take %.2f GB, and up to twice that where two "
            "threads share a step", len(self.tasks), count / 1e6, len(self.tasks) * count * 4 / 2**30,
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
        shared = [parameter for _, parameter in shared_parameters(model)]
        places = {task.name: place for place, task in enumerate(self.tasks)}
        rows: list[Row] = [[None] * len(shared) for _ in self.tasks]
        self._rows[model] = rows
        if model is self.model:  # what a step starts with is dense zeros, if anything
            self._zeros = [parameter.grad for parameter in shared]
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

    def combine(
        self,
        step: int,
        counts: Mapping[str, int],
        losses: Tensor,
        accelerator: Accelerator,
        ahead: LookAhead | None = None,
    ) -> None:
        """Give the model its gradients of a step: over all processes, of tasks with labelled items in it.

        Args:
            losses: [tasks] this process's part of the step's.
            ahead: what affinities are measured with.
        """
        shared = [parameter for _, parameter in shared_parameters(self.model)]
        rows = self._rows.pop(self.model)
        for other in self._rows.values():  # the twin's
            rows = [[_added(*pair) for pair in zip(*both, strict=True)] for both in zip(rows, other, strict=True)]
        self._rows.clear()
        if accelerator.num_processes > 1:
            rows = self._exchanged(rows, shared, accelerator)
        if self.affinities is not None and ahead is not None and self._measures(step):
            labelled = [place for place, task in enumerate(self.tasks) if counts[task.name]]
            self.affinities.measure(shared, rows, labelled, over_processes(losses, accelerator), ahead)
        found = [_products(gradients, accelerator.device) for gradients in zip(*rows, strict=True)]
        products = torch.stack(found).cpu().double().numpy()  # [parameters, tasks, tasks]
        gramian: Array = products.sum(axis=0)
        present = [
            place for place, task in enumerate(self.tasks)
            if counts[task.name] and task.loss_weight and gramian[place, place] != 0
        ]  # fmt: skip
        weights = np.ones(len(self.tasks)) if self._gradnorm is None else self._gradnorm.weights.detach().numpy().copy()
        if present and np.isfinite(gramian).all():  # what is not finite is told when it is logged
            if self._gradnorm is not None:
                norms = np.sqrt(np.diag(gramian)[present]).tolist()
                self._gradnorm.update(present, norms, over_processes(losses, accelerator).tolist())
            else:
                weights[present] = self._found(step, gramian[np.ix_(present, present)], present)
        # Processes may round differently.
        used = broadcast(torch.tensor(weights, dtype=torch.float32, device=accelerator.device)).tolist()
        measured = products[self._measured].sum(axis=0)
        self._weights.append({task.name: weight for task, weight in zip(self.tasks, used, strict=True)})
        for pair, cosine in _cosines([task.name for task in self.tasks], measured, present).items():
            self._cosines.setdefault(pair, []).append(cosine)
        for parameter, gradients, zeros in zip(shared, zip(*rows, strict=True), self._zeros, strict=True):
            parameter.grad = _weighted(gradients, used, zeros, parameter)

    def _found(self, step: int, gramian: Array, present: Sequence[int]) -> Array:
        order = np.random.default_rng((self.seed, step))
        if self.strategy == "pcgrad":
            return projected_weights(gramian, order)
        if self.strategy == "gradvac":
            chosen = np.ix_(present, present)
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

    def _exchanged(self, rows: list[Row], shared: Sequence[nn.Parameter], accelerator: Accelerator) -> list[Row]:
        """Sums over processes: of the rows, and of the gradients of heads, of which a process may have none."""
        common = {id(parameter) for parameter in shared}
        own = [p for p in self.model.parameters() if p.requires_grad and id(p) not in common]
        for parameter, gradient in zip(own, reduced([p.grad for p in own], own, accelerator), strict=True):
            parameter.grad = gradient
        return [[*reduced(row, shared, accelerator)] for row in rows]

    def told(self) -> dict[str, Any]:
        """Of the steps that told gradients apart and that no call has told of yet: what each task's gradient counted in
        the newest and, where a strategy chose it, in each; the mean cosine of each two, over the steps that had both;
        mean affinities."""
        found: dict[str, Any] = {} if self.affinities is None else self.affinities.told()
        if self._weights:
            found["gradient_weights"] = self._weights[-1]
            found["gradient_cosines"] = {pair: sum(each) / len(each) for pair, each in self._cosines.items()}
            if self.strategy != "sum":
                by_step = {task.name: [step[task.name] for step in self._weights] for task in self.tasks}
                found["gradient_weights_by_step"] = by_step
        self._weights, self._cosines = [], {}
        return found

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on, as plain values."""
        found: dict[str, Any] = {"weights": self._weights, "cosines": self._cosines}
        if self._gradnorm is not None:
            found["gradnorm"] = self._gradnorm.state()
        if self.strategy == "gradvac":
            found["targets"] = self.targets.tolist()
        if self.affinities is not None:
            found["affinities"] = self.affinities.state()
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""
        self._weights, self._cosines = state.get("weights", []), state.get("cosines", {})
        if "targets" in state:
            self.targets = np.array(state["targets"])
        if self._gradnorm is not None and "gradnorm" in state:
            self._gradnorm.restore(state["gradnorm"])
        if self.affinities is not None and "affinities" in state:
            self.affinities.restore(state["affinities"])


def shared_parameters(model: MultiTaskModel) -> list[tuple[str, nn.Parameter]]:
    """The parameters that several tasks may read, with their names: the encoder's, and what else they share."""
    read_by, alone = model.readers(), len(model.task_names) == 1
    return [
        (name, p) for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith("heads.") and (alone or len(read_by[name]) > 1)
    ]  # fmt: skip


@contextmanager
def _gradients_in(parameters: Sequence[nn.Parameter], row: Row) -> Iterator[None]:
    """Within it, gradients add up in a row; outside, parameters have none."""
    for parameter, gradient in zip(parameters, row, strict=True):
        parameter.grad = gradient
    try:
        yield
    finally:
        for place, parameter in enumerate(parameters):
            row[place], parameter.grad = parameter.grad, None


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def reduced(
    gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter], accelerator: Accelerator
) -> Iterator[Tensor]:
    """Gradients on parameters (None: zero), added up over processes; all have to call it."""
    pairs = list(zip(gradients, parameters, strict=True))
    flat = [(torch.zeros_like(p) if gradient is None else gradient.to_dense()).flatten() for gradient, p in pairs]
    total = accelerator.reduce(torch.cat(flat), "sum")
    assert isinstance(total, Tensor)
    for (_, parameter), gradient in zip(pairs, total.split([p.numel() for p in parameters]), strict=True):
        yield gradient.view_as(parameter)


def _cosines(names: Sequence[str], gramian: Array, present: Sequence[int]) -> dict[str, float]:
    norms = np.sqrt(np.diag(gramian))
    pairs = [(one, other) for one in present for other in present if one < other and norms[one] * norms[other] > 0]
    return {f"{names[a]}/{names[b]}": float(gramian[a, b] / (norms[a] * norms[b])) for a, b in pairs}


def _products(gradients: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """[tasks, tasks] The products of the tasks' gradients on one parameter; 0 where a task has none."""
    there = [(place, gradient) for place, gradient in enumerate(gradients) if gradient is not None]
    if not there:
        return torch.zeros(len(gradients), len(gradients), device=device)
    if any(gradient.is_sparse for _, gradient in there):
        # Rows of embeddings, each task's at its own places: brought to the places of all.
        sparse = [gradient.coalesce() for _, gradient in there]
        places = torch.cat([gradient.indices()[0] for gradient in sparse]).unique()
        flat = torch.zeros(len(sparse), len(places), sparse[0].shape[1], device=places.device)
        for part, gradient in zip(flat, sparse, strict=True):
            part[torch.searchsorted(places, gradient.indices()[0])] = gradient.values()
        pieces: Iterable[Tensor] = [flat.flatten(1)]
    else:
        columns = [gradient.flatten() for _, gradient in there]
        size = _CACHED if device.type == "cpu" else len(columns[0])
        pieces = map(torch.stack, zip(*(column.split(size) for column in columns), strict=True))
    chosen = torch.tensor([place for place, _ in there])
    found = torch.zeros(len(gradients), len(gradients), device=device)
    for piece in pieces:
        found[chosen[:, None], chosen] += piece @ piece.T
    return found


def _weighted(
    gradients: Sequence[Tensor | None], weights: Sequence[float], zeros: Tensor | None, like: Tensor
) -> Tensor:
    """The weighted sum on one parameter, dense. ``gradients`` are spent; ``zeros``: may become the sum."""
    pairs = [(gradient, weight) for gradient, weight in zip(gradients, weights, strict=True) if gradient is not None]
    if not pairs or pairs[0][0].is_sparse:
        total = torch.zeros_like(like) if zeros is None else zeros
        for gradient, weight in pairs:
            total.add_(gradient, alpha=weight)
        return total
    (total, first), *others = pairs
    total.mul_(first)
    for gradient, weight in others:
        total.add_(gradient, alpha=weight)
    return total
