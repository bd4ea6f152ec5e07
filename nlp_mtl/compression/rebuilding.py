"""A model of another shape with weights of the old one, and which weights a number of its configuration shapes.

Configurations are tried on the meta device, so no family's names have to be known here.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from nlp_mtl.errors import ModelError
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.multitask import MultiTaskModel


class Axis(NamedTuple):
    """Where a weight's shape depends on a number of the configuration."""

    place: int
    blocks: int
    """So many times the number: a map to units and to their gates, one behind the other, has two blocks."""


def check_plain(model: MultiTaskModel, key: str) -> None:
    """That an encoder's layers are those of its family.

    Raises:
        ModelError: tasks have layers or adapters of their own in them.
    """
    strategy = (model.config.sharing or {}).get("strategy")
    if strategy in ("towers", "lora"):
        raise ModelError(
            f"{key}: tasks have parts of their own in the encoder's layers (sharing: {strategy}), so nothing can be "
            "taken out of these; vocabulary and magnitude go with any sharing"
        )


def changed(config: MultiTaskConfig, **encoder_values: Any) -> MultiTaskConfig:
    """A copy, with other values of the encoder's own configuration."""
    config = copy.deepcopy(config)
    for key, value in encoder_values.items():
        setattr(config.encoder_config, key, value)
    return config


def shapes(config: MultiTaskConfig) -> dict[str, Size]:
    """``{weight: its shape}`` of a model."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in MultiTaskModel(config).state_dict().items()}


def axes(model: MultiTaskModel, key: str) -> dict[str, Axis]:
    """``{weight: where its shape depends on a number of the encoder's configuration}``; empty: none does.

    Raises:
        ModelError: a weight depends on it in another way.
    """
    number = getattr(model.config.encoder_config, key)
    found = {}
    for name, doubled in shapes(changed(model.config, **{key: 2 * number})).items():
        shape = model.state_dict()[name].shape
        places = [place for place, size in enumerate(doubled) if size != shape[place]]
        if places:
            (place, *others), size = places, shape[places[0]]
            if others or size % number or doubled[place] != 2 * size:
                raise ModelError(
                    f"the weight {name} does not grow with the encoder's {key}, so it cannot shrink with it"
                )
            found[name] = Axis(place, size // number)
    return found


def chosen(tensor: Tensor, axis: Axis, kept: Tensor) -> Tensor:
    """Some of the places of each block of a weight."""
    size = tensor.shape[axis.place] // axis.blocks
    places = torch.cat([kept + block * size for block in range(axis.blocks)])
    return tensor.index_select(axis.place, places.to(tensor.device))


def rebuilt(config: MultiTaskConfig, weights: Mapping[str, Tensor]) -> MultiTaskModel:
    """A model with these weights, on the CPU.

    Raises:
        ModelError: they do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        model = MultiTaskModel(config)
    try:
        model.load_state_dict({name: tensor.detach().cpu() for name, tensor in weights.items()})
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise ModelError(
            f"what is left of the `{config.encoder_config.model_type}` fits together no more: {told:.300}"
        ) from error
    model.eval()
    return model
