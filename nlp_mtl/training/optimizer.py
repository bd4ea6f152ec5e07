"""Parameter groups, learning-rate schedules, and averaged weights."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nlp_mtl.training.freezing import highest, layer_depths


def new_optimizer(model: nn.Module, *, plain: bool = False, **settings: Any) -> torch.optim.Optimizer:
    """AdamW for what learns of a model; or plain steps, which move a weight by its gradient times the rate (SGD).

    Args:
        settings: as :func:`parameter_groups` takes them.
    """
    groups = parameter_groups(model, **settings)
    if plain:
        return torch.optim.SGD(groups)
    device = next(model.parameters()).device
    return torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    undecayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups for AdamW: encoder and heads have learning rates of their own, biases and norms no decay.

    Every parameter that needs a gradient is in exactly one group. Each group also holds its ``name`` and
    ``peak_lr``, which :func:`set_learning_rates` scales, and the ``parameter_names``, in order.

    Args:
        model: its heads are the parameters below ``heads``, the encoder's pooler, and what sharing adds.
        learning_rate: of all other parameters, in the encoder's last layer and behind it.
        layer_decay: a layer's learning rate is that of the layer above times this; the embeddings are the lowest
            layer. 1: all learn alike. (Howard and Ruder 2018, arXiv 1801.06146, "discriminative fine-tuning".)
        undecayed: parameters that have no decay either, as something else draws them.
    """
    depths = layer_depths(model)
    last = highest(depths)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths[name]
        if depth is None:
            part, rate = "heads", head_learning_rate
        else:
            part, rate = "encoder", learning_rate * layer_decay ** (last - depth)
            if layer_decay != 1:
                part = f"encoder layer {depth}" if depth else "embeddings"
        decays = is_matrix(name, parameter) and name not in undecayed
        empty = {
            "name": part if decays else f"{part}, no decay",
            "params": [],
            "parameter_names": [],
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        group = groups.setdefault((part, decays), empty)
        group["params"].append(parameter)
        group["parameter_names"].append(name)
    return list(groups.values())


def schedule_factor(step: int, num_steps: int, schedule: str, warmup_fraction: float) -> float:
    """What the peak learning rate is multiplied by in a step, from 0 to 1.

    It rises linearly over the first ``warmup_fraction`` of the steps, then falls to 0 just behind the last step
    (``linear``, ``cosine``) or stays (``constant``). The first step learns: its factor is not 0.
    """
    warmup = math.ceil(num_steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    rest = (num_steps - step) / max(num_steps - warmup, 1)
    return rest if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * rest))


def set_learning_rates(groups: list[dict[str, Any]], factor: float) -> None:
    """Set each group's learning rate to its peak times ``factor``."""
    for group in groups:
        group["lr"] = group["peak_lr"] * factor


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter may be pulled to 0: no bias, no norm's scale, no cross-stitch unit, which starts near 1."""
    return parameter.ndim > 1 and not name.endswith(".stitch")


def add_penalties(parameters: Iterable[tuple[str, nn.Parameter]], l1_penalty: float, l2_penalty: float) -> None:
    """Add the gradients of ``l1_penalty * sum(abs(w)) + l2_penalty * sum(w ** 2)`` over matrices that learn in a step.

    Biases and norms are left alone, as by weight decay. Unlike it, penalties pass through AdamW's scaling
    (Loshchilov and Hutter 2019, arXiv 1711.05101) and count in the gradient's norm.
    """
    for name, parameter in parameters if l1_penalty or l2_penalty else ():
        if parameter.grad is not None and is_matrix(name, parameter):
            weights = parameter.detach()
            if l1_penalty:
                parameter.grad.add_(weights.sign(), alpha=l1_penalty)
            if l2_penalty:
                parameter.grad.add_(weights, alpha=2 * l2_penalty)


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """A copy of a model that ``update_parameters`` makes an exponential moving average of it; None without decay.

    (Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; exponential and by
    torch's ``swa_utils``.) Its first update takes the weights as they are.

    Args:
        decay: the share of the average that a step keeps.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
