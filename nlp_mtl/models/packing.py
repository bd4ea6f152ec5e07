"""Encoders that read packed texts: all tokens of a micro-batch in one row, without padding, each text for itself.

Projections and feed-forward layers run over the flat tokens; only attention has to know where a text ends. It is a
function registered with transformers, which an encoder calls in place of its own.
"""

import copy
from inspect import signature
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlp_mtl.models.dropping_attention import attend

_varlen_attn: Any = None
try:
    from torch.nn.attention import varlen
except ImportError:  # torch before 2.10
    pass
else:
    if "window_size" in signature(varlen.varlen_attn).parameters:
        _varlen_attn = varlen.varlen_attn

ATTENTION = "nlp_mtl_packed"
"""The name under which :func:`attention` is registered."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Stock attention, or that of packed texts where ``cu_seq_lens_q`` tells where they end.

    Args:
        query, key, value: [1, heads, tokens, size] of packed texts.
        kwargs: as transformers gives them: ``scaling``, ``dropout``, ``sliding_window``; ``cu_seq_lens_q`` and
            ``max_length_q`` as the ``cu_seq_lens`` and ``max_length`` of :func:`encode_packed`.

    Returns:
        [1, tokens, heads, size]
    """
    # As the flash kernels have it: a token sees those that are less than ``sliding_window`` away.
    window = kwargs.get("sliding_window")
    ends = kwargs.get("cu_seq_lens_q")
    if ends is None:
        if attention_mask is None and window is not None:  # :func:`_mask` took the texts for packed ones
            attention_mask = _near(query.shape[2], window, query.device)[None, None]
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    longest, dropout = kwargs["max_length_q"], kwargs.get("dropout", 0.0)
    scale = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    states = [query.squeeze(0), key.squeeze(0), value.squeeze(0)]  # [heads, tokens, size] each
    if query.device.type != "cuda":
        places = tuple(ends.tolist())
        out = attend(states, places, window, dropout, scale) if dropout else _by_length(states, places, window, scale)
    elif _varlen_attn and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        q, k, v = (one.transpose(0, 1) for one in states)
        reach = (-1, -1) if window is None else (window - 1, window - 1)
        out = _varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=reach)
    else:
        out = _padded(states, ends, longest, window, dropout, scale)
    return out[None], None


def _by_length(states: list[Tensor], ends: tuple[int, ...], window: int | None, scale: float) -> Tensor:
    """Texts of the same length that stand side by side are one batch. For CPU, where a call costs little."""
    runs = [(len(list(run)), length) for length, run in groupby(stop - start for start, stop in pairwise(ends))]
    # One split and one concatenation: their backward passes copy each token once, that of slices once a slice.
    parts = [one.split([count * length for count, length in runs], dim=1) for one in states]
    out = []
    for (count, length), *flat in zip(runs, *parts, strict=True):
        q, k, v = (one.unflatten(1, (count, length)).transpose(0, 1) for one in flat)  # [texts, heads, length, size]
        mask = None if window is None or length <= window else _near(length, window, q.device)
        one = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        out.append(one.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


def _padded(
    states: list[Tensor], ends: Tensor, longest: int, window: int | None, dropout: float, scale: float
) -> Tensor:
    """Texts are padded for attention alone: few calls, any number format, dropout."""
    places = token_places(ends, longest)
    mask = (places >= 0)[:, None, None]
    if window is not None and longest > window:
        # A padding token sees itself: else it would see nothing, and its row would be NaN.
        mask = mask & _near(longest, window, ends.device) | torch.eye(longest, dtype=torch.bool, device=ends.device)
    rows = places.clamp(min=0).flatten()
    q, k, v = (one.index_select(1, rows).unflatten(1, places.shape).transpose(0, 1) for one in states)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    tokens = states[0].shape[1]
    shifts = torch.arange(len(places), device=ends.device) * longest - ends[:-1]
    back = torch.arange(tokens, device=ends.device) + shifts.repeat_interleave(ends.diff(), output_size=tokens)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, back)


def _near(length: int, window: int, device: torch.device) -> Tensor:
    """[length, length] Whether a token sees another."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places).abs() < window


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """None for packed texts, for which :func:`attention` needs no mask; they come without an ``attention_mask``."""
    if attention_mask is None:
        return None
    kwargs["attention_mask"] = attention_mask
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def token_places(cu_seq_lens: Tensor, max_length: int) -> Tensor:
    """[texts, max_length] Where the tokens of packed texts stand in the flat row; -1 behind a text's end."""
    places = cu_seq_lens[:-1, None] + torch.arange(max_length, device=cu_seq_lens.device)
    return torch.where(places < cu_seq_lens[1:, None], places, -1)


def position_offset(encoder: nn.Module) -> int:
    """The position of a text's first token: RoBERTa and its kin count from behind the padding token's id."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def encode_packed(
    encoder: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, cu_seq_lens: Tensor, max_length: int
) -> Tensor:
    """Hidden states of packed texts, [1, tokens, hidden].

    Args:
        encoder: with :data:`ATTENTION` set.
        input_ids, position_ids: [1, tokens], positions counted from 0 in each text.
        cu_seq_lens: [texts + 1] int32, where each text starts, and the end.
        max_length: tokens of the longest text.
    """
    output = encoder(
        input_ids=input_ids,
        position_ids=position_ids + position_offset(encoder),
        cu_seq_lens_q=cu_seq_lens,
        cu_seq_lens_k=cu_seq_lens,
        max_length_q=max_length,
        max_length_k=max_length,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def pooled(encoder: PreTrainedModel, hidden: Tensor) -> Tensor:
    """What the encoder's pooler makes of texts ([texts, tokens, hidden]): it took the packed ones for one text."""
    pooler: Any = encoder.pooler
    if isinstance(pooler, nn.Linear):  # ALBERT's, which its encoder calls as BERT's pooler does its own
        activation: Any = encoder.pooler_activation
        linear: Tensor = activation(pooler(hidden[:, 0]))
        return linear
    found: Tensor = pooler(hidden)
    return found


def family_refusal(config: PreTrainedConfig) -> str | None:
    """Why no encoder with a configuration can read packed texts; None where it may."""
    with torch.device("meta"):
        return _family_refusal(AutoModel.from_config(copy.deepcopy(config)))


def _family_refusal(encoder: PreTrainedModel) -> str | None:
    if encoder._supports_attention_backend:
        return None
    # It would take the name of any attention function, and go on with its own.
    return f"the attention of a {encoder.config.model_type} cannot be replaced"


def refusal(encoder: PreTrainedModel) -> str | None:
    """Why an encoder cannot read packed texts; None where it can, and :data:`ATTENTION` is now its attention.

    It is run, on texts of several lengths, to see that it reads each as if it were alone. Nothing is left changed
    where it is refused.
    """
    if why := _family_refusal(encoder):
        return why
    given = encoder.config._attn_implementation
    if given not in ("sdpa", "eager", ATTENTION):
        return f"it was loaded with the attention `{given}`"
    encoder.set_attn_implementation(ATTENTION)
    try:
        why = _difference(encoder)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        why = f"it does not run on them ({type(error).__name__}: {error})"
    if why:
        encoder.set_attn_implementation(given)
    return why


@torch.no_grad()
def _difference(encoder: PreTrainedModel) -> str | None:
    """What tells packed texts from the same texts read alone."""
    config: Any = encoder.config
    window = getattr(config, "sliding_window", None) or 0
    lengths = [3, 1, min(window + 9, getattr(config, "max_position_embeddings", 512) // 2), 3]
    embeddings: Any = encoder.get_input_embeddings()
    vocabulary, padding = len(embeddings.weight), getattr(config, "pad_token_id", None) or 0
    ids = (padding + torch.randint(1, vocabulary, (sum(lengths),), generator=torch.Generator())) % vocabulary
    positions = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ids, positions, ends = (one.to(encoder.device) for one in (ids[None], positions[None], ends))
    was_training = encoder.training
    encoder.eval()
    try:
        packed = encode_packed(encoder, ids, positions, ends, max(lengths))
        alone = [
            encoder(input_ids=text, attention_mask=torch.ones_like(text)).last_hidden_state
            for text in ids.split(lengths, dim=1)
        ]
    finally:
        encoder.train(was_training)
    difference, largest = (packed - torch.cat(alone, dim=1)).abs().max().item(), packed.abs().max().item()
    # Texts that leak into each other differ in the first digits, rounding in the last half of them.
    if difference <= torch.finfo(packed.dtype).eps ** 0.5 * max(largest, 1):
        return None
    return f"their hidden states differ by {difference:.2g} from those of texts that it reads alone"
