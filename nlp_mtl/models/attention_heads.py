"""Attention heads of an encoder's layers, and taking some out: more from one layer than from another.

No stock configuration has a place for that, so an encoder is built with all of its heads and then cut.

Needs torch alone: the file goes with a model's weights, for those who load them without this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
"""What families call the number of heads in their modules."""


class Attention(NamedTuple):
    """The attention of a layer: maps to queries, keys and values, and the one that reads what the heads found."""

    module: nn.Module
    inputs: dict[str, nn.Linear]
    """By their names in the encoder. One map may hold queries, keys and values of all heads, one behind the other."""
    output: nn.Linear
    output_name: str
    head_size: int

    @property
    def num_heads(self) -> int:
        """How many there are."""
        return self.output.in_features // self.head_size


def attentions(encoder: Any) -> list[Attention]:
    """The attention of each layer, from the lowest; of layers that share their weights, once.

    Raises:
        ValueError: it is not made of linear maps for heads that are all alike.
    """
    config = encoder.config
    own_size = getattr(config, "head_dim", None) or getattr(config, "attention_head_size", None)
    head_size = own_size or config.hidden_size // config.num_attention_heads
    found = []
    for path, layer in layers_of(encoder):
        parts = [
            (name, part) for name, part in layer.named_children() if "att" in name and any(_linear_maps(part, name))
        ]
        if len(parts) != 1:
            raise ValueError(f"a layer of the family `{config.model_type}` has {len(parts)} parts called attention")
        name, module = parts[0]
        *inputs, (output_name, output) = _linear_maps(module, f"{path}.{name}")
        width = output.in_features
        fits = output.out_features == config.hidden_size and width % head_size == 0 and inputs
        if not fits or any(one.out_features % width for _, one in inputs):
            raise ValueError(f"the attention of the family `{config.model_type}` is not made of maps for equal heads")
        found.append(Attention(module, dict(inputs), output, output_name, head_size))
    return found


def layers_of(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """An encoder's layers with their names, from the lowest: what its innermost lists of modules hold."""
    lists = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)}
    inner = {name: one for name, one in lists.items() if not any(other.startswith(f"{name}.") for other in lists)}
    return [(f"{name}.{place}", layer) for name, one in inner.items() for place, layer in enumerate(one)]


def _linear_maps(module: nn.Module, path: str) -> list[tuple[str, nn.Linear]]:
    return [(f"{path}.{name}", part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def keep_heads(encoder: Any, kept: Sequence[Sequence[int]]) -> None:
    """Take all other heads out of an encoder's layers.

    Args:
        kept: for each of :func:`attentions` the places of the heads that stay, at least one.

    Raises:
        ValueError: there are not so many layers or heads, or none would stay, or they cannot be told apart.
    """
    found = attentions(encoder)
    if len(kept) != len(found):
        raise ValueError(f"heads of {len(kept)} layers are told, but there are {len(found)}")
    for one, heads in zip(found, kept, strict=True):
        if not 0 < len({*heads} & {*range(one.num_heads)}) == len(heads):
            raise ValueError(f"a layer with {one.num_heads} heads cannot keep {list(heads)}")
    for one, heads in zip(found, kept, strict=True):
        width, count = one.output.in_features, len(heads)
        places = head_places(heads, one.head_size)
        for linear in one.inputs.values():
            _choose(linear, torch.cat([places + start for start in range(0, linear.out_features, width)]), 0)
        _choose(one.output, places, 1)
        for part in one.module.modules():
            for name in _COUNTS:
                if hasattr(part, name):
                    setattr(part, name, count)
            if hasattr(part, "all_head_size"):
                part.all_head_size = count * one.head_size  # type: ignore[assignment]


def leave_heads(encoder: Any, counts: Sequence[int] | None) -> None:
    """Leave each layer of a new encoder so many heads: which they are is for the weights to tell. None: all."""
    if counts is not None:
        keep_heads(encoder, [range(count) for count in counts])


def head_places(heads: Sequence[int], head_size: int) -> Tensor:
    """[heads * head_size] Where the numbers of some heads stand among those of all."""
    return torch.cat([torch.arange(head * head_size, (head + 1) * head_size) for head in heads])


def _choose(linear: nn.Linear, places: Tensor, axis: int) -> None:
    """Keep some of a map's outputs (axis 0) or inputs (axis 1)."""
    weight = linear.weight
    places = places.to(weight.device)
    linear.weight = nn.Parameter(weight.detach().index_select(axis, places), weight.requires_grad)
    if axis == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[places], linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def with_all_heads(encoder: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights as a stock encoder has them: heads of zeros in the places of those that were taken out.

    They add nothing, so the stock encoder gives the same, to rounding.
    """
    padded = dict(weights)
    for one in attentions(encoder):
        width = one.output.in_features
        full = encoder.config.num_attention_heads * one.head_size
        for name, linear in one.inputs.items():
            for key in (f"{name}.weight", *([f"{name}.bias"] * (linear.bias is not None))):
                blocks = [_lengthened(block, full, 0) for block in weights[key].split(width)]
                padded[key] = torch.cat(blocks)
        key = f"{one.output_name}.weight"
        padded[key] = _lengthened(weights[key], full, 1)
    return padded


def _lengthened(tensor: Tensor, size: int, axis: int) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)
