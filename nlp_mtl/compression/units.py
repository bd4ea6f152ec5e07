"""Feed-forward units that are taken out of an encoder's layers: as many in each, as configurations have one width.

Which weights belong to them shows when the width is changed; see :mod:`nlp_mtl.compression.rebuilding`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nlp_mtl.compression.rebuilding import Axis, axes, changed, check_plain, chosen, rebuilt
from nlp_mtl.errors import ModelError
from nlp_mtl.models.multitask import MultiTaskModel

_WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim")
"""What families call the width in their configurations."""
_WHOLE = 8
"""Widths stay multiples of this where they are: products of matrices are quicker so."""


class Units(NamedTuple):
    """The feed-forward units of an encoder."""

    key: str
    """What its configuration calls the width."""
    width: int
    axes: dict[str, Axis]
    """``{weight: where its units are}``"""
    outputs: dict[str, str]
    """``{layer: the linear map that reads its units}``, by their names in the model."""


def find_units(model: MultiTaskModel) -> Units:
    """The feed-forward units of a model's encoder.

    Raises:
        ModelError: they cannot be told apart.
    """
    check_plain(model, "intermediate")
    config = model.config.encoder_config
    for key in _WIDTHS:
        width = getattr(config, key, None)
        found = axes(model, key) if isinstance(width, int) else {}
        if not isinstance(width, int) or not found:
            continue
        outputs = [name.removesuffix(".weight") for name, axis in found.items() if axis == Axis(1, 1)]
        by_layer = {_layer(name): name for name in outputs}
        are_linear = all(isinstance(model.get_submodule(name), nn.Linear) for name in outputs)
        if not are_linear or len(by_layer) < len(outputs) or {*by_layer} != {_layer(name) for name in found}:
            break
        return Units(key, width, found, by_layer)
    raise ModelError(f"intermediate: the feed-forward units of the family `{config.model_type}` cannot be told apart")


def _layer(name: str) -> str:
    """The layer that a weight is in: all up to the last number in its name."""
    match = re.match(r"(.*\.\d+)\.", name)
    return match[1] if match else ""


def units_left(width: int, share: float) -> int:
    """How many units are left of so many, at least one."""
    left = width * (1 - share)
    return min(width, max(_WHOLE, round(left / _WHOLE) * _WHOLE)) if width % _WHOLE == 0 else max(1, round(left))


def keep_units(model: MultiTaskModel, units: Units, kept: Mapping[str, Tensor]) -> MultiTaskModel:
    """A model with some of the units of each layer.

    Args:
        kept: ``{layer: places of the units that stay}``, in order, as many in each.

    Raises:
        ModelError: what is left fits together no more.
    """
    (left,) = {len(places) for places in kept.values()}
    weights = model.state_dict()
    weights |= {name: chosen(weights[name], axis, kept[_layer(name)]) for name, axis in units.axes.items()}
    return rebuilt(changed(model.config, **{units.key: left}), weights)


def without_units(model: MultiTaskModel, units: Units, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights, in its old shape, so that nobody hears the other units: the smaller one has to equal it."""
    weights = model.state_dict()
    for layer, name in units.outputs.items():
        weight = weights[f"{name}.weight"]
        mask = torch.zeros(units.width, dtype=torch.bool, device=weight.device)
        mask[kept[layer].to(mask.device)] = True
        weights[f"{name}.weight"] = weight * mask
    return weights
