"""Losses on their way from the device to the log."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from nlp_mtl.data.steps import StepDataset
from nlp_mtl.errors import TrainingError, listed
from nlp_mtl.tasks import Task
from nlp_mtl.training.checkpoint import TrainingState

logger = logging.getLogger(__name__)


class LossRecorder:
    """Keeps losses on the device until a line is logged, so that steps need not wait for them."""

    def __init__(self, data: StepDataset, tasks: Sequence[Task], accelerator: Accelerator, state: TrainingState):
        self.data, self.tasks, self.accelerator = data, tasks, accelerator
        self._waiting: list[tuple[int, Tensor, Tensor, dict[str, int], Tensor]] = []
        self._fetched: dict[str, list[float]] = {task.name: list(state.pending.get(task.name, [])) for task in tasks}
        self._since = {task.name: list(state.losses_since.get(task.name, [0.0, 0])) for task in tasks}
        self._grad_norm, self._weights = 0.0, [list(weights) for weights in state.pending_weights]
        self._unseen = {task.name for task in tasks}

    def add(self, step: int, losses: Tensor, grad_norm: Tensor, counts: dict[str, int], weights: Tensor) -> None:
        """One step's losses ([tasks]), gradient norm, labelled items of each task, and weights ([tasks])."""
        self._waiting.append((step, losses, grad_norm.to(losses.device), counts, weights))
        self._unseen -= {task for task, count in counts.items() if count}

    def tell_unseen(self, first: int, last: int) -> None:
        """Warn of tasks of which no step had a label: in streams, nobody can see that before."""
        if self._unseen and last > first:
            logger.warning("No row of the steps %d to %d had a label of %s", first + 1, last, listed(self._unseen))

    def fetch(self) -> None:
        """Bring what waits to the CPU and check it.

        Raises:
            TrainingError: a loss or a gradient is not a finite number.
        """
        if not self._waiting:
            return
        losses = self.accelerator.reduce(torch.stack([losses for _, losses, *_ in self._waiting]), "sum").tolist()
        norms = torch.stack([norm for _, _, norm, *_ in self._waiting]).tolist()  # the same on all processes
        for (step, _, _, counts, _), values, norm in zip(self._waiting, losses, norms, strict=True):
            present = [task.name for task in self.tasks if counts[task.name]]
            for task, value in zip(self.tasks, values, strict=True):
                if not math.isfinite(value):
                    raise self._not_finite(step, f"the loss of task `{task.name}` is {value}", [task.name])
                if task.name in present:
                    self._fetched[task.name].append(value)
                    since = self._since[task.name]
                    since[:] = since[0] + value, since[1] + 1
            if not math.isfinite(norm):
                raise self._not_finite(step, f"the norm of the gradient of {listed(present)} is {norm}", present)
        self._grad_norm = norms[-1]
        self._weights += torch.stack([weights for *_, weights in self._waiting]).tolist()
        self._waiting.clear()

    def _not_finite(self, step: int, what: str, tasks: Sequence[str]) -> TrainingError:
        plan = self.data.sampler[step]
        where = list(dict.fromkeys(place for task in tasks for place in self.data.where(plan, task)))
        shown = "".join(f"\n  {place}" for place in where[:8])
        more = f"\n  and {len(where) - 8} more" if len(where) > 8 else ""
        return TrainingError(
            f"{what} at step {step + 1}. Nothing was saved since the last checkpoint. Try a lower learning_rate, "
            f"or mixed_precision: no. The rows of that step:{shown}{more}"
        )

    def line(self, step: int, learning_rates: Mapping[str, float]) -> dict[str, Any]:
        """The line for metrics.jsonl: mean losses since the last line, without tasks that had no row.

        ``loss`` is their sum by the fixed weights; ``weights`` are those of the step itself, ``weights_by_step`` those
        of each step since the last line, where they changed.
        """
        steps, self._weights = self._weights, []
        names = [task.name for task in self.tasks]
        changed = any(weights != steps[0] for weights in steps)
        by_step = {"weights_by_step": dict(zip(names, map(list, zip(*steps, strict=True)), strict=True))}
        losses = {task: sum(values) / len(values) for task, values in self._fetched.items() if values}
        for values in self._fetched.values():
            values.clear()
        fixed = {task.name: task.loss_weight for task in self.tasks}
        return {
            "step": step,
            "loss": sum(fixed[task] * loss for task, loss in losses.items()),
            "losses": losses,
            "weights": dict(zip(names, steps[-1], strict=True)),
            **(by_step if changed else {}),
            "grad_norm": self._grad_norm,
            "learning_rates": dict(learning_rates),
        }

    def pending(self) -> dict[str, list[float]]:
        """Fetched losses that no line has told yet."""
        return {task: list(values) for task, values in self._fetched.items() if values}

    def pending_weights(self) -> list[list[float]]:
        """[steps, tasks] The same of weights."""
        return [list(weights) for weights in self._weights]

    def since_evaluation(self) -> dict[str, list[float]]:
        """``{task: [sum, steps]}`` of the fetched losses since :meth:`start_anew`."""
        return {task: list(since) for task, since in self._since.items()}

    def start_anew(self) -> dict[str, float]:
        """Mean losses since the last call, of the tasks that had a row; what comes next is counted anew."""
        means = {task: total / steps for task, (total, steps) in self._since.items() if steps}
        self._since = {task: [0.0, 0] for task in self._since}
        return means
