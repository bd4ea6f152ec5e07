"""Attention heads that are taken out of an encoder's layers, and whether an encoder bears what is taken out of it."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nlp_mtl.compression.rebuilding import check_plain
from nlp_mtl.errors import ModelError, first_line
from nlp_mtl.models.attention_heads import Attention, attentions, head_places, keep_heads
from nlp_mtl.models.multitask import MultiTaskModel


def find_heads(model: MultiTaskModel) -> list[Attention]:
    """The attention of each layer, from the lowest; of layers that share their weights, once.

    Raises:
        ModelError: the encoder is not made so that heads can be told apart.
    """
    check_plain(model, "heads")
    try:
        return attentions(model.encoder)
    except ValueError as error:
        raise ModelError(f"heads: none can be taken out: {error}") from error


def take_out_heads(model: MultiTaskModel, kept: Sequence[Sequence[int]]) -> MultiTaskModel:
    """A model with some of the heads of each layer.

    Args:
        kept: for each layer of :func:`find_heads` the places of those that stay, at least one.
    """
    smaller = copy.deepcopy(model)
    keep_heads(smaller.encoder, kept)
    smaller.config.heads_per_layer = [len(heads) for heads in kept]
    return smaller


def without_heads(model: MultiTaskModel, kept: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The model's weights, in its old shape, so that nobody hears the other heads: the smaller one has to equal it."""
    weights = model.state_dict()
    for one, heads in zip(find_heads(model), kept, strict=True):
        name = f"encoder.{one.output_name}.weight"
        mask = torch.zeros(one.output.in_features, dtype=torch.bool)
        mask[head_places(heads, one.head_size)] = True
        weights[name] = weights[name] * mask.to(weights[name].device)
    return weights


@torch.no_grad()
def check_alike(model: MultiTaskModel, weights: Mapping[str, Tensor], smaller: MultiTaskModel, key: str) -> None:
    """Run an encoder that has lost a part beside one that still has it, but hears nothing of it.

    Args:
        model: the whole one.
        weights: in its shape, without what the part says.
        smaller: without the part.
        key: what took it out, for the message.

    Raises:
        ModelError: their hidden states differ, or it does not run.
    """
    whole = copy.deepcopy(model).eval()
    whole.load_state_dict(dict(weights))
    config = model.config.encoder_config
    vocabulary, padding = config.vocab_size, config.pad_token_id or 0
    ids = (padding + torch.randint(1, vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))) % vocabulary
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = padding, 0
    kept = mask.bool()
    try:
        expected, found = (
            one.to(ids.device).encoder(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
            for one in (whole, smaller)
        )
        difference = (expected - found).abs().max() / expected.abs().max().clamp(min=1)
        why = f"its hidden states differ by {difference:.2g} of the largest" * bool(not difference < 1e-4)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        why = f"it does not run without them: {first_line(error)}"
    if why:
        raise ModelError(f"{key}: nothing can be taken out of the layers of the family `{config.model_type}`: {why}")
