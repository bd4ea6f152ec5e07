"""Two threads share a step on CPU: each computes the gradients of half of its micro-batches, with half of the cores.

Between the matrix products of a step there is much that one core does while the others wait: Python, small
operations, the start and the end of each parallel loop. Two threads wait at different times.
"""

import copy
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor, nn

from nlp_mtl.data.steps import StepBatches
from nlp_mtl.models.dropout import quick_dropout
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.cpu import quick_step

ForwardBackward = Callable[[nn.Module, StepBatches], Tensor]
"""Adds the gradients of micro-batches to a model's, and returns their share of the tasks' losses ([tasks])."""


def num_threads(device: str, num_processes: int) -> int:
    """How many threads share a step: two where one process has all cores, and two can have as many each.

    Where OpenMP pins threads (``OMP_PROC_BIND``), a new one is pinned to the core of the thread that started it.
    """
    cores = torch.get_num_threads()
    pinned = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < cores
    return 2 if device == "cpu" and num_processes == 1 and cores % 2 == 0 and not pinned else 1


def twin(model: MultiTaskModel) -> MultiTaskModel:
    """A second model on the same weights, with gradients of its own."""
    parameters = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, {**parameters, **{id(buffer): buffer for buffer in model.buffers()}})


def draws_only_quick_dropout(model: MultiTaskModel) -> bool:
    """Whether a forward pass in training takes no random number but :class:`QuickDropout`'s.

    A global generator is one for all threads: which thread draws next would be chance.
    """
    before = _generator_states()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quick_dropout(model, 0):
        twin(model)(torch.zeros((1, 4), dtype=torch.long))  # another's pass: it may leave something behind
        return before == _generator_states()


def _generator_states() -> tuple[object, ...]:
    _, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), rest, random.getstate()


class SharedSteps:
    """Computes the gradients of steps on two threads, of which the caller is one.

    The twin's gradients are added to the model's when both are done: the sums do not depend on which was the quicker.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        self.model, self.twin = model, twin(model)
        self._cores = torch.get_num_threads()
        self._half = max(1, self._cores // 2)
        self._thread = ThreadPoolExecutor(1, "nlp_mtl_step", initializer=torch.set_num_threads, initargs=(self._half,))

    def __call__(self, forward_backward: ForwardBackward, batches: StepBatches, seed: int) -> Tensor:
        """Add a step's gradients to the model's; returns its losses ([tasks])."""
        torch.set_num_threads(self._half)
        try:
            others = self._thread.submit(_of_thread, forward_backward, self.twin, batches, seed, 1)
            try:
                losses = _of_thread(forward_backward, self.model, batches, seed, 0)
            finally:
                wait([others])
            losses += others.result()
        finally:
            torch.set_num_threads(self._cores)
        _move_gradients(self.twin, self.model)
        return losses


def _of_thread(
    forward_backward: ForwardBackward, model: MultiTaskModel, batches: StepBatches, seed: int, thread: int
) -> Tensor:
    with quick_step(model, (seed, thread)):
        return forward_backward(model, batches._replace(micro_batches=batches.micro_batches[thread::2]))


def _move_gradients(source: nn.Module, target: nn.Module) -> None:
    """Add a model's gradients to another's, and leave it none."""
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        if one.grad is not None:
            other.grad = one.grad if other.grad is None else other.grad.add_(one.grad)
            one.grad = None
