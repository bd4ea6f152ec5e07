"""A step of a tiny run with the gradients of its tasks told apart, and by autograd."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from trained import run

from nlp_mtl.recipe import GradientsSpec
from nlp_mtl.training.balancing import summed_loss
from nlp_mtl.training.gradients import TaskGradients, shared_parameters

STRATEGIES = [one for one in get_args(GradientsSpec.model_fields["strategy"].annotation) if one != "sum"]


class Step:
    """The first step of a tiny run, and the gradients of its tasks."""

    def __init__(
        self, folder: Path, strategy: str, *, signs: Sequence[float] = (1, 1, 1), options: Any = None, **training: Any
    ) -> None:
        """``signs``: of the tasks' losses; -1 turns a gradient round, so that it conflicts with what it agreed with."""
        a_run = run(folder, **training)
        self.model, self.tasks, self.data = a_run.model, a_run.tasks, a_run.data
        self.gradients = TaskGradients(self.model, self.tasks, strategy, **(options or {}))
        self.signs = signs
        self.go_to(0)

    def go_to(self, step: int) -> None:
        """Another step, of the same model."""
        self.data.one_set_every = 1
        self.step, self.batches = step, self.data[step]

    def compute(self, precision: str = "no") -> Tensor:
        accelerator = Accelerator()
        self.model.to(accelerator.device)
        weights = torch.tensor(self.signs, dtype=torch.float32, device=accelerator.device)
        return self.gradients.forward_backward(self.model, self.batches, weights, accelerator, precision)

    def combined(self, precision: str = "no") -> dict[str, Tensor]:
        self.model.zero_grad()
        losses = self.compute(precision)
        self.gradients.combine(self.step, self.batches.counts, losses, Accelerator())
        return {name: p.grad.cpu() for name, p in self.model.named_parameters() if p.grad is not None}

    def update(self, precision: str = "no") -> Tensor:
        """[shared parameters] What the tasks' gradients become."""
        found = self.combined(precision)
        return torch.cat([found[name].flatten() for name, _ in shared_parameters(self.model)])

    def one_by_one(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradient of each task's loss on what is shared (flat), and those of heads, by autograd."""
        self.data.one_set_every = None
        batches = self.data[self.step]
        rows, heads = [], {}
        for task, sign in zip(self.tasks, self.signs, strict=True):
            self.model.zero_grad()
            for micro_batch in send_to_device(batches.micro_batches, next(self.model.parameters()).device):
                chosen = micro_batch.tasks[task.name]
                logits = self.model(**micro_batch.inputs, rows={task.name: chosen.rows})[task.name]
                (sign * summed_loss(logits, chosen) / batches.counts[task.name]).backward()
            shared = [p for _, p in shared_parameters(self.model)]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
            own = self.model.head(task.name).named_parameters()
            heads |= {f"heads.{task.name}_head.{name}": p.grad.cpu() for name, p in own if p.grad is not None}
        self.model.zero_grad()
        return rows, heads
