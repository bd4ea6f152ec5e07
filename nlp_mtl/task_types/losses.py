"""Losses of labels: cross-entropy, with weights of classes, focused on what is hard, smoothed; and of soft targets."""

from typing import TYPE_CHECKING

from nlp_mtl.tasks import MISSING, LossShape

if TYPE_CHECKING:
    from torch import Tensor


def label_losses(logits: "Tensor", targets: "Tensor", shape: LossShape) -> "Tensor":
    """[n] Losses of items that have one label each; 0 where it is MISSING.

    - ``class_weights``: an item counts as much as its label.
    - ``label_smoothing`` (Szegedy et al. 2016, arXiv 1512.00567): this share of the target is spread over all labels.
    - ``focal_gamma`` (Lin et al. 2017, arXiv 1708.02002): an item of which the model gives its label the probability p
      counts (1 - p)^gamma.

    Args:
        logits: [n, labels]
        targets: [n]
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits = logits.float()
    weights = _class_weights(shape, logits) if shape.class_weights else None
    losses = cross_entropy(
        logits, targets, weights, ignore_index=MISSING, reduction="none", label_smoothing=shape.label_smoothing
    )
    if shape.focal_gamma:
        given = targets.clamp(min=0)[:, None]
        others = -torch.expm1(logits.log_softmax(-1).gather(-1, given)[:, 0])
        losses = losses * others.clamp(min=torch.finfo(torch.float32).tiny) ** shape.focal_gamma
    return losses


def indicator_losses(logits: "Tensor", targets: "Tensor", shape: LossShape) -> "Tensor":
    """[n, labels] Losses of labels that hold or not, each for itself.

    As :func:`label_losses`, of the two cases that a label holds or not; ``class_weights`` weigh those that hold.

    Args:
        logits, targets: [n, labels]
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

    logits = logits.float()
    wanted = targets * (1 - shape.label_smoothing) + shape.label_smoothing / 2 if shape.label_smoothing else targets
    weights = _class_weights(shape, logits) if shape.class_weights else None
    losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weights)
    if shape.focal_gamma:
        others = -torch.expm1(logsigmoid(torch.where(targets > 0.5, logits, -logits)))
        losses = losses * others.clamp(min=torch.finfo(torch.float32).tiny) ** shape.focal_gamma
    return losses


def label_divergences(logits: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """[...] The Kullback-Leibler divergences of answers from a teacher's, of items that have one label each.

    Their gradient is that of the cross-entropy with the teacher's probabilities as the target; of equal answers they
    are 0. Times the square of the temperature: gradients are then as large at any (Hinton et al. 2015, arXiv
    1503.02531).

    Args:
        logits, teacher: [..., labels]
    """
    from torch.nn.functional import kl_div

    found, wanted = ((one.float() / temperature).log_softmax(-1) for one in (logits, teacher))
    divergences = kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    return divergences.clamp(min=0) * temperature**2  # rounding alone makes less of them


def indicator_divergences(logits: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """[...] As :func:`label_divergences`, of labels that hold or not, each for itself; summed over labels.

    Args:
        logits, teacher: [..., labels]
    """
    from torch.nn.functional import logsigmoid

    found, wanted = logits.float() / temperature, teacher.float() / temperature
    cases = [(logsigmoid(sign * found), logsigmoid(sign * wanted)) for sign in (1, -1)]  # it holds, it does not
    differences = [other.exp() * (other - one) for one, other in cases]
    return (differences[0] + differences[1]).sum(-1).clamp(min=0) * temperature**2


def _class_weights(shape: LossShape, logits: "Tensor") -> "Tensor":
    import torch

    return torch.tensor(shape.class_weights, dtype=torch.float32, device=logits.device)
