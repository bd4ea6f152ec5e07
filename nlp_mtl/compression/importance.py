"""How much attention heads and feed-forward units matter to the tasks: what their loss would change, to first order.

For what a head or a unit gives to a text, the product with the loss's gradient there, summed over the text: by so much
the loss would change if it gave nothing (Michel et al. 2019, "Are sixteen heads really better than one?", arXiv
1905.10650, section 4.1; Molchanov et al. 2019, "Importance estimation for neural network pruning", arXiv 1906.10771).
Absolute values are added up over texts. A task's scores in a layer are divided by their Euclidean norm, as Michel et
al. do, so that neither layers nor tasks with large losses decide alone; then the tasks' scores are added up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nlp_mtl.data.steps import StepDataset
from nlp_mtl.errors import DataError, listed
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task
from nlp_mtl.training.passes import summed_losses


def importances(
    model: MultiTaskModel,
    data: StepDataset,
    tasks: Sequence[Task],
    outputs: Mapping[str, int],
    *,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Scores of what linear maps read: of heads or of units.

    Args:
        model: on the accelerator's device; dropout is off meanwhile.
        data: steps of padded texts, all of which are read.
        tasks: those that count; each alike.
        outputs: ``{linear map: how many of its inputs belong together}``: the size of a head, or 1 for units.

    Returns:
        ``{linear map: [heads or units]}`` on the CPU, none below 0.

    Raises:
        DataError: no row has labels of a task.
    """
    counted = [task.name for task in tasks if task.loss_weight]
    scores: dict[str, dict[str, Tensor]] = {task: {} for task in counted}
    was_training = model.training
    model.eval()
    modules = {name: model.get_submodule(name) for name in outputs}
    for step in range(len(data)):
        for micro_batch in data[step].micro_batches:
            present = {name: one for name, one in micro_batch.tasks.items() if len(one.rows) and name in counted}
            if not present:
                continue
            with _inputs_of(modules) as read:
                sums = summed_losses(model, micro_batch._replace(tasks=present), accelerator, "no")
            names, states = zip(*((name, one) for name, found in read.items() for one in found), strict=True)
            for number, (task, loss) in enumerate(sums.items()):
                gradients = torch.autograd.grad(loss, states, retain_graph=number < len(sums) - 1, allow_unused=True)
                for name, found in _by_text(names, states, gradients, outputs).items():
                    scores[task][name] = scores[task].get(name, 0) + found
    model.train(was_training)
    if missing := [task for task, found in scores.items() if not found]:
        raise DataError(
            f"none of the training rows that were read has labels of {listed(missing)}, so how much heads and units "
            "matter to it cannot be told: raise compression.importance_rows"
        )
    return {name: sum((_normed(scores[task][name]) for task in counted), torch.zeros(1)).cpu() for name in outputs}


def _by_text(
    names: Sequence[str], states: Sequence[Tensor], gradients: Sequence[Tensor | None], outputs: Mapping[str, int]
) -> dict[str, Tensor]:
    """``{linear map: [heads or units]}`` of a micro-batch; one that runs in several layers adds up before all else."""
    found: dict[str, Any] = {}
    for name, state, gradient in zip(names, states, gradients, strict=True):
        if gradient is not None:
            products = (state.detach() * gradient).sum(dim=1)  # [texts, inputs], over their tokens
            found[name] = found.get(name, 0) + products.unflatten(1, (-1, outputs[name])).sum(dim=2)
    return {name: one.abs().sum(dim=0).double() for name, one in found.items()}


def _normed(scores: Tensor) -> Tensor:
    norm = scores.norm()
    return scores.cpu() / norm.cpu() if norm > 0 else scores.cpu()


@contextmanager
def _inputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """What modules read meanwhile, each time that they run."""
    read: dict[str, list[Tensor]] = {name: [] for name in modules}
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: read[name].append(given[0]))
        for name, module in modules.items()
    ]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def least_heads(scores: Sequence[Tensor], share: float) -> list[list[int]]:
    """For each layer the heads that stay when a share of all goes, those with the lowest scores; one stays in each.

    Args:
        scores: [heads] of each layer.
    """
    total = sum(map(len, scores))
    ranked = sorted((float(value), layer, head) for layer, one in enumerate(scores) for head, value in enumerate(one))
    left = [{*range(len(one))} for one in scores]
    to_go = min(round(share * total), total - len(scores))
    for _, layer, head in ranked:
        if to_go and len(left[layer]) > 1:
            left[layer].remove(head)
            to_go -= 1
    return [sorted(heads) for heads in left]


def best_units(scores: Tensor, count: int) -> Tensor:
    """The places of the units with the highest scores, in order; of equals the first."""
    return torch.sort(torch.sort(scores, descending=True, stable=True).indices[:count]).values
