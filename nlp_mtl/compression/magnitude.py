"""Weights of an encoder's layers that become 0 for good, the lowest in absolute value, by torch's own utilities.

They make zeros, neither smaller tensors nor a faster model: the file can be packed to less.
(Han et al. 2015, "Learning both weights and connections for efficient neural networks", arXiv 1506.02626.)
"""

from typing import Literal

from torch.nn.utils import prune

from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.held_back import layer_matrices


def prune_magnitude(model: MultiTaskModel, share: float, scope: Literal["global", "layer"]) -> None:
    """Set a share of the weights of an encoder's layers to 0, and have training keep them there.

    Args:
        share: of all of them, zeros that are there counted.
        scope: ``global``: the lowest of all; ``layer``: of each matrix the same share.
    """
    matrices = layer_matrices(model).values()
    if scope == "global":
        prune.global_unstructured([(one, "weight") for one in matrices], prune.L1Unstructured, amount=share)
    else:
        for one in matrices:
            prune.l1_unstructured(one, "weight", amount=share)
    for one in matrices:
        prune.remove(one, "weight")
    model.config.keep_zeros = True


def share_of_zeros(model: MultiTaskModel) -> float:
    """The share of zeros in the matrices of an encoder's layers."""
    matrices = [one.weight.detach() for one in layer_matrices(model).values()]
    return sum(int((one == 0).sum()) for one in matrices) / sum(one.numel() for one in matrices)
