"""Meta-learning: an encoder from which new tasks are learned with few rows.

In each step some episodes (:mod:`nlp_mtl.data.episodes`) are learned one by one, each from the encoder as it is, and
what they say becomes one gradient on the encoder:

- ``reptile`` (Nichol et al. 2018, arXiv 1803.02999): the mean of (encoder before - encoder after). A plain step of the
  rate r then moves the encoder by r of the way to the mean of what episodes made of it.
- ``fomaml`` (Finn et al. 2017, arXiv 1703.03400, first order): the mean of the gradients that episodes have, on rows
  that they did not learn from, at the weights that they ended with.

An episode's head is new, drawn as that of any new task is, and goes with it: a later task begins just so.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nlp_mtl.data.batches import MicroBatch
from nlp_mtl.data.steps import Episode, StepBatches
from nlp_mtl.models.heads import build_head
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task
from nlp_mtl.training.affinity import LookAhead
from nlp_mtl.training.cpu import quick_step, zero_gradients
from nlp_mtl.training.gradients import reduced
from nlp_mtl.training.optimizer import new_optimizer
from nlp_mtl.training.passes import summed_losses

Algorithm = Literal["reptile", "fomaml"]


class InnerLoop(NamedTuple):
    """How an episode is learned; names are those of the recipe's ``training`` section."""

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    layer_decay: float
    max_grad_norm: float
    """0: gradients are not clipped."""
    mixed_precision: str


class MetaGradients:
    """The gradients of meta steps; the trainer asks for them as for those of
    :class:`nlp_mtl.training.gradients.TaskGradients`."""

    def __init__(
        self, model: MultiTaskModel, tasks: Sequence[Task], algorithm: Algorithm, episodes: int, inner: InnerLoop
    ) -> None:
        """
        Args:
            episodes: in a step, over all processes.
        """
        self.model, self.algorithm, self.episodes, self.inner = model, algorithm, episodes, inner
        self._places = {task.name: place for place, task in enumerate(tasks)}
        self._totals: list[Tensor] = []

    def wanted(self, step: int) -> bool:
        """In every step."""
        return True

    def tell_memory(self) -> None:
        """Nothing: it holds the encoder's weights twice more, as AdamW does."""

    def forward_backward(
        self, model: nn.Module, batches: StepBatches, weights: Tensor, accelerator: Accelerator, mixed_precision: str
    ) -> Tensor:
        """Learn this process's episodes of a step, and leave the model as it was; returns its share of the tasks'
        losses ([tasks]): those of the last inner step (``reptile``), or of the rows that were tried (``fomaml``)."""
        assert isinstance(model, MultiTaskModel)
        learning = encoder_parameters(model)
        totals = [torch.zeros_like(parameter) for parameter in learning]
        losses = torch.zeros(len(weights), device=weights.device)
        for episode in batches.episodes:
            with learned(model, episode, self.inner, accelerator) as (before, loss):
                if self.algorithm == "fomaml":
                    model.zero_grad()
                    loss = backward(model, *episode.query, accelerator, self.inner.mixed_precision)
                for total, parameter, old in zip(totals, learning, before, strict=True):
                    if self.algorithm == "reptile":
                        total += old - parameter.detach()
                    elif parameter.grad is not None:
                        total += parameter.grad
            losses[self._places[episode.task.name]] += loss / batches.counts[episode.task.name]
        self._totals = totals
        return losses

    def combine(
        self,
        step: int,
        counts: Mapping[str, int],
        losses: Tensor,
        accelerator: Accelerator,
        ahead: LookAhead | None = None,
    ) -> None:
        """Give the encoder its gradients of a step, over all processes; heads have none."""
        learning = encoder_parameters(self.model)
        totals: Sequence[Tensor] = self._totals
        if accelerator.num_processes > 1:
            totals = [*reduced(totals, learning, accelerator)]
        self.model.zero_grad()
        for parameter, total in zip(learning, totals, strict=True):
            parameter.grad = total / self.episodes
        self._totals = []

    def told(self) -> dict[str, Any]:
        """Nothing but what the trainer tells."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing: an episode is a function of its number, and of the encoder."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing, as there is no state."""


def encoder_parameters(model: MultiTaskModel) -> list[nn.Parameter]:
    """What is learned over episodes: all that learns but heads."""
    return [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads.")]


@contextmanager
def learned(
    model: MultiTaskModel, episode: Episode, inner: InnerLoop, accelerator: Accelerator
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Within it, a model has learned an episode, with a new head for the task; behind it, it is what it was.

    Yields:
        the encoder's weights as they were, and the loss of the last inner step.
    """
    learning = encoder_parameters(model)
    before = [parameter.detach().clone() for parameter in learning]
    seed = sum(part << 32 * place for place, part in enumerate(episode.seed)) % 2**63
    on_cpu = model.device.type == "cpu"
    try:
        with new_head(model, episode.task, seed), quick_step(model, episode.seed) if on_cpu else nullcontext():
            loss = _learn(model, episode, inner, accelerator)
            yield before, loss
    finally:
        with torch.no_grad():
            for parameter, old in zip(learning, before, strict=True):
                parameter.copy_(old)
        model.zero_grad()


@contextmanager
def new_head(model: MultiTaskModel, task: Task, seed: int) -> Iterator[None]:
    """Within it, a task's head is a new one, for the labels that the task has here. Seeds torch's generators."""
    name = f"{task.name}_head"
    before = model.heads[name]
    torch.manual_seed(seed)
    head: Any = build_head(task.type, model.config.encoder_config, task.labels)
    head.init_weights()
    model.heads[name] = head.to(model.device).train(model.training)
    try:
        yield
    finally:
        model.heads[name] = before


def _learn(model: MultiTaskModel, episode: Episode, inner: InnerLoop, accelerator: Accelerator) -> Tensor:
    """Make an episode's inner steps; returns the loss of the last."""
    optimizer = new_optimizer(
        model,
        plain=inner.optimizer == "sgd",
        learning_rate=inner.learning_rate,
        head_learning_rate=inner.head_learning_rate,
        weight_decay=inner.weight_decay,
        layer_decay=inner.layer_decay,
    )
    loss = torch.zeros((), device=model.device)
    for micro_batches, count in episode.inner:
        if model.device.type == "cpu":
            zero_gradients(optimizer, model.get_input_embeddings())
        else:
            optimizer.zero_grad()
        loss = backward(model, micro_batches, count, accelerator, inner.mixed_precision)
        if inner.max_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), inner.max_grad_norm)
        optimizer.step()
    return loss


def backward(
    model: nn.Module, micro_batches: Sequence[MicroBatch], count: int, accelerator: Accelerator, mixed_precision: str
) -> Tensor:
    """Add the gradients of the mean loss over ``count`` labelled items of one task; returns it."""
    total = torch.zeros((), device=accelerator.device)
    for micro_batch in micro_batches:
        (value,) = summed_losses(model, micro_batch, accelerator, mixed_precision).values()
        share = value / max(count, 1)
        share.backward()
        total += share.detach()
    return total
