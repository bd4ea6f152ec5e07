"""Parameter groups, learning-rate schedules, and averaged weights."""

import math
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def parameter_groups(
    model: nn.Module, *, learning_rate: float, head_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: encoder and heads have learning rates of their own, biases and norms no decay.

    Every parameter that needs a gradient is in exactly one group. Each group also holds its ``name`` and
    ``peak_lr``, which :func:`set_learning_rates` scales, and the ``parameter_names``, in order.

    Args:
        model: its heads are the parameters below ``heads``, and the encoder's pooler.
        learning_rate: of all other parameters.
    """
    rates = {"encoder": learning_rate, "heads": head_learning_rate}
    groups = {
        (part, decays): {
            "name": part if decays else f"{part}, no decay",
            "params": [],
            "parameter_names": [],
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for part, rate in rates.items()
        for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # A pooler is read by heads alone; most families have the same layer in the head.
            part = "heads" if name.startswith(("heads.", "encoder.pooler.")) else "encoder"
            # One-dimensional parameters are biases and the scales of norms.
            group: dict[str, Any] = groups[part, parameter.ndim > 1]
            group["params"].append(parameter)
            group["parameter_names"].append(name)
    return [group for group in groups.values() if group["params"]]


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


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """A copy of a model that ``update_parameters`` makes an exponential moving average of it; None without decay.

    (Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; exponential and by
    torch's ``swa_utils``.) Its first update takes the weights as they are.

    Args:
        decay: the share of the average that a step keeps.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
