"""Layers that are left out of an encoder.

(Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer models", arXiv 2004.03844. They drop
layers before fine-tuning, and miss the top ones least; here there are heads on top of the last.)
"""

import re
from collections.abc import Sequence

import torch
from torch import Size, Tensor

from nlp_mtl.compression.rebuilding import Axis, changed, check_plain, chosen, rebuilt, shapes
from nlp_mtl.errors import ModelError
from nlp_mtl.models.attention_heads import layers_of
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.multitask import MultiTaskModel


def layers_left(layers: int | Sequence[int], count: int) -> list[int]:
    """The layers that stay of so many, counted from 1.

    Args:
        layers: which; or how many, the lowest ones and the last: the tasks' heads have learned to read that one.
    """
    if not isinstance(layers, int):
        return [*layers]
    return [*range(1, layers), count] if 1 < layers < count else [*range(1, layers + 1)]


def keep_layers(model: MultiTaskModel, layers: int | Sequence[int]) -> MultiTaskModel:
    """A model of which some layers are left; the others are as if hidden states passed them by.

    Args:
        layers: how many, or which; see :func:`layers_left`.

    Raises:
        ModelError: there are no such layers; or they cannot be told apart; or the encoder would not be one of its
            family without them.
    """
    check_plain(model, "layers")
    config = model.config.encoder_config
    family, count = config.model_type, config.num_hidden_layers
    kept = layers_left(layers, count)
    if not kept or kept != sorted({*kept}) or kept[0] < 1 or kept[-1] > count:
        raise ModelError(f"layers: found {layers}, but the encoder has the layers 1 to {count}: name some, in order")
    if len(kept) == count:
        raise ModelError(f"layers: found {layers}, which are all that the encoder has: leave it out, or keep fewer")
    fewer = shapes(_with_layers(model, [*range(count - 1)]))
    weights: dict[str, Tensor] = model.state_dict()
    gone = weights.keys() - fewer.keys()
    last = {match[1] for name in gone if (match := re.match(rf"(.*?\.){count - 1}\.", name))}
    if not gone and not isinstance(layers, int):
        raise ModelError(
            f"layers: all layers of the family `{family}` have the same weights, so give how many are left"
        )
    if gone and (len(last) != 1 or any(not name.startswith(f"{min(last)}{count - 1}.") for name in gone)):
        raise ModelError(f"layers: those of the family `{family}` are not in one list, so none can be left out")
    if not gone and len(layers_of(model.encoder)) > 1:
        raise ModelError(f"layers: some of this `{family}` share weights and some do not, so none can be left out")
    prefix = min(last, default="")
    places = [layer - 1 for layer in kept]
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = re.match(rf"{re.escape(prefix)}(\d+)\.", name) if prefix else None
        if match is None:
            made[name] = _of_states(tensor, fewer[name], places)
        elif int(match[1]) in places:
            made[f"{prefix}{places.index(int(match[1]))}.{name[match.end() :]}"] = tensor
    try:
        return rebuilt(_with_layers(model, places), made)
    except ModelError as error:
        raise ModelError(f"layers: {error}. The first layer of some families has other parts: keep it") from error


def _with_layers(model: MultiTaskModel, places: Sequence[int]) -> MultiTaskConfig:
    """A model's configuration with some of its layers, and with what it says of each of these."""
    config = model.config.encoder_config
    count = config.num_hidden_layers
    of_each = {
        key: [value[place] for place in places]
        for key, value in vars(config).items()
        if "layer" in key and isinstance(value, list) and len(value) == count
    }
    made = changed(model.config, num_hidden_layers=len(places), **of_each)
    if made.heads_per_layer is not None and len(made.heads_per_layer) == count:
        made.heads_per_layer = [made.heads_per_layer[place] for place in places]
    return made


def _of_states(tensor: Tensor, fewer: Size, places: Sequence[int]) -> Tensor:
    """A weight for each layer's hidden states, embeddings first: those of the layers that are left."""
    if tensor.shape == fewer:
        return tensor
    return chosen(tensor, Axis(0, 1), torch.tensor([0, *(place + 1 for place in places)]))
