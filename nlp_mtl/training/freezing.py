"""Which layers of the encoder learn, and when."""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Literal

from torch import nn

from nlp_mtl.errors import ModelError
from nlp_mtl.models.adapters import OWN

logger = logging.getLogger(__name__)

Frozen = int | Literal["embeddings", "encoder"]
"""``encoder``: all of it; a number: the embeddings and so many of the lowest layers, none for 0."""


def layer_depths(model: nn.Module) -> dict[str, int | None]:
    """``{parameter: its layer}``: 0 for embeddings, 1 for the encoder's first layer, ...; None for what is new."""
    depths: dict[str, int | None] = {}
    behind: list[str] = []
    for name, _ in model.named_parameters():
        layer = re.search(r"\.(\d+)\.", name)
        plain = ".".join(part for part in name.split(".") if not part.endswith(OWN))  # tasks have any name
        # A pooler is read by heads alone; most families have the same layer in the head. What tasks share besides the
        # encoder starts from nothing, like a head.
        if name.startswith(("heads.", "encoder.pooler.", "sharing.")) or name.endswith(".stitch") or ".lora_" in name:
            depths[name] = None
        # Also tables of positions that all layers share, and DeBERTa's norm of one.
        elif "embed" in plain or "relative" in plain or name.startswith("encoder.encoder.LayerNorm."):
            depths[name] = 0
        elif name.startswith("encoder.encoder.conv."):  # some of DeBERTa have it beside the first layer
            depths[name] = 1
        elif layer:
            depths[name] = int(layer[1]) + 1
        else:
            behind.append(name)  # a norm or a projection behind the last layer
    return depths | dict.fromkeys(behind, highest(depths))


def highest(depths: Mapping[str, int | None]) -> int:
    """The encoder's last layer."""
    return max((depth for depth in depths.values() if depth is not None), default=0)


def freeze(model: nn.Module, frozen: Frozen) -> None:
    """Take layers out of training for good: they get no gradient, and cost no backward pass.

    Raises:
        ModelError: the encoder has not so many layers, or some of them are towers.
    """
    if frozen == 0:
        return
    depths = layer_depths(model)
    layers = highest(depths)
    if isinstance(frozen, int) and frozen > layers:
        raise ModelError(f"training.frozen_layers is {frozen}, but the encoder has {layers}: choose at most as many")
    below = {"embeddings": 0, "encoder": layers}[frozen] if isinstance(frozen, str) else frozen
    for name, parameter in model.named_parameters():
        depth = depths[name]
        if depth is not None and depth <= below:
            if ".copies." in name:
                raise ModelError(
                    f"training.frozen_layers: {frozen} takes in layers that each task has for itself (`sharing: "
                    "towers`), which would stay alike: freeze fewer"
                )
            parameter.requires_grad_(False)


def keep(model: nn.Module, parameters: Collection[str]) -> None:
    """Take single parameters out of training for good, by their names."""
    for name, parameter in model.named_parameters():
        if name in parameters:
            parameter.requires_grad_(False)


def learning_layers(model: nn.Module) -> set[int]:
    """The encoder's layers that are not frozen, 0 for embeddings."""
    depths = layer_depths(model)
    found = {depths[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {depth for depth in found if depth is not None}


class Thaw:
    """Gradual unfreezing: heads learn alone at first, then the encoder's layers join from the top, one at a time.

    (Howard and Ruder 2018, arXiv 1801.06146.) Which layers learn is a function of the step, so a resumed run goes on
    as it would have. Gradients are computed for all and dropped, as replicas of a model must agree on what they
    exchange: the first steps cost as much as the others.
    """

    def __init__(self, model: nn.Module, steps_per_layer: int | None, num_steps: int) -> None:
        """
        Args:
            steps_per_layer: after so many steps the next layer joins; None: all learn from the start.
            num_steps: of the run.
        """
        self.steps_per_layer = steps_per_layer
        depths = layer_depths(model) if steps_per_layer else {}
        last = highest(depths)
        # [steps at which a parameter joins, counted in layers]
        self._waiting = [
            (last - depth + 1, parameter)
            for name, parameter in model.named_parameters()
            if (depth := depths.get(name)) is not None and parameter.requires_grad
        ]
        joined = (num_steps - 1) // steps_per_layer if steps_per_layer else last
        late = max((layers for layers, _ in self._waiting), default=0) - joined
        if late > 0:
            logger.warning(
                "training.unfreeze_every: of %d steps, %d a layer, the lowest %d of the encoder's layers (embeddings "
                "counted) never learn", num_steps, steps_per_layer, late,
            )  # fmt: skip

    def drop_gradients(self, step: int) -> None:
        """Take the gradients away from layers that do not learn yet in a step (counted from 0)."""
        for layers, parameter in self._waiting:
            if step < layers * (self.steps_per_layer or 0):
                parameter.grad = None
