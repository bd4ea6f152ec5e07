"""Encoders that read packed texts: all tokens of a micro-batch in one row, without padding, each text for itself.

Projections and feed-forward layers run over the flat tokens; only attention has to know where a text ends. It is a
function registered with transformers, which an encoder calls in place of its own.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlp_mtl.errors import ModelError
from nlp_mtl.models.dropping_attention import attend as attend_dropping

# Both are private: the public jagged tensors cost a call twenty times as much, and the public variable-length attention
# cannot drop out. For short texts the memory-efficient kernel is faster, and it takes float32. It must not drop out:
# its forward pass draws one mask for all heads and texts, its backward pass others (torch's num_keys of jagged texts).
_flash: Any = getattr(torch.ops.aten, "_flash_attention_forward", None)
_memory_efficient: Any = getattr(torch.ops.aten, "_efficient_attention_forward", None)

logger = logging.getLogger(__name__)

ATTENTION = "nlp_mtl_packed"
"""The name under which :func:`attention` is registered."""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Stock attention, or that of packed texts where ``lengths`` tells where they end.

    Args:
        query, key, value: [1, heads, tokens, size] of packed texts.
        kwargs: as transformers gives them: ``scaling``, ``dropout``, ``sliding_window``; ``lengths`` and
            ``cu_seq_lens_q`` as :func:`encode_packed` does.

    Returns:
        [1, tokens, heads, size]
    """
    # As the flash kernels have it: a token sees those that are less than ``sliding_window`` away.
    window = kwargs.get("sliding_window")
    lengths: tuple[int, ...] | None = kwargs.get("lengths")
    if lengths is None:
        if attention_mask is None and window is not None:  # :func:`_mask` took the texts for packed ones
            attention_mask = _near(query.shape[2], window, query.device)[None, None]
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    dropout = kwargs.get("dropout", 0.0)
    scale = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    states = [query.squeeze(0), key.squeeze(0), value.squeeze(0)]  # [heads, tokens, size] each
    if query.device.type == "cpu":
        attend = partial(attend_dropping, dropout=dropout) if dropout else _by_length
        return attend(states, lengths, window=window, scale=scale)[None], None
    cu_seq_lens: Tensor = kwargs["cu_seq_lens_q"]
    longest = max(lengths)
    if window is not None and longest <= window:
        window = None
    q, k, v = (one.transpose(0, 1) for one in states)
    alike = q.dtype == k.dtype == v.dtype  # rotary positions can come in float32, and the kernels do not convert
    ends = (cu_seq_lens, cu_seq_lens, longest, longest)
    if alike and window is None and not dropout and _has_memory_efficient(query):
        # 0: no mask; True: what the backward pass needs is kept.
        out = _memory_efficient(q[None], k[None], v[None], None, *ends, 0.0, 0, True, scale=scale)[0][0]
    elif alike and _has_flash(query):
        reach = {} if window is None else {"window_size_left": window - 1, "window_size_right": window - 1}
        # False: not causal; False: no mask of what is dropped is given back.
        out = _flash(q, k, v, *ends, dropout, False, False, scale=scale, **reach)[0]
    else:
        out = _padded(states, cu_seq_lens, lengths, window, dropout, scale)
    return out[None], None


def _has_memory_efficient(query: Tensor) -> bool:
    """Whether torch's memory-efficient kernel takes such states: rows of whole 16 bytes, on a GPU."""
    return (
        _memory_efficient is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.shape[-1] * query.element_size() % 16 == 0
    )


def _has_flash(query: Tensor) -> bool:
    """Whether torch's variable-length flash kernel takes such states: half precision, an Ampere GPU or later."""
    return (
        _flash is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _by_length(states: list[Tensor], lengths: tuple[int, ...], window: int | None, scale: float) -> Tensor:
    """Texts of the same length that stand side by side are one batch. For CPU, where a call costs little."""
    runs = [(len(list(run)), length) for length, run in groupby(lengths)]
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
    states: list[Tensor], cu_seq_lens: Tensor, lengths: tuple[int, ...], window: int | None, dropout: float,
    scale: float,
) -> Tensor:  # fmt: skip
    """Texts are padded for attention alone, those of about one length together: few calls, any format, dropout."""
    out = []
    for first, stop in pairwise(_doublings(lengths)):
        longest, tokens = max(lengths[first:stop]), sum(lengths[first:stop])
        ends = cu_seq_lens[first : stop + 1]
        places = token_places(ends, longest)
        mask = (places >= 0)[:, None, None]
        if window is not None and longest > window:
            # A padding token sees itself: else it would see nothing, and its row would be NaN.
            itself = torch.eye(longest, dtype=torch.bool, device=ends.device)
            mask = mask & _near(longest, window, ends.device) | itself
        rows = places.clamp(min=0).flatten()
        q, k, v = (one.index_select(1, rows).unflatten(1, places.shape).transpose(0, 1) for one in states)
        batch = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        shifts = torch.arange(len(places), device=ends.device) * longest - (ends[:-1] - ends[0])
        back = torch.arange(tokens, device=ends.device) + shifts.repeat_interleave(ends.diff(), output_size=tokens)
        out.append(batch.transpose(1, 2).flatten(0, 1).index_select(0, back))
    return torch.cat(out)


def _doublings(lengths: tuple[int, ...]) -> list[int]:
    """Where texts that stand side by side are cut, so that the longest of a group is at most twice its shortest."""
    cuts, shortest, longest = [0], lengths[0], lengths[0]
    for place, length in enumerate(lengths):
        shortest, longest = min(shortest, length), max(longest, length)
        if longest > 2 * shortest:
            cuts.append(place)
            shortest = longest = length
    return [*cuts, len(lengths)]


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


def has_segments(config: PreTrainedConfig) -> bool:
    """Whether an encoder tells the texts of a pair apart by ``token_type_ids``: BERT does, RoBERTa has one segment."""
    return (getattr(config, "type_vocab_size", None) or 0) > 1


def encode_packed(
    encoder: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seq_lens: Tensor,
    lengths: Sequence[int],
    output_hidden_states: bool = False,
    **segments: Tensor,
) -> tuple[Tensor, ...]:
    """Hidden states of packed texts, [1, tokens, hidden]: of the last layer, or of all, embeddings first.

    Args:
        encoder: with :data:`ATTENTION` set.
        input_ids, position_ids: [1, tokens], positions counted from 0 in each text.
        cu_seq_lens: [texts + 1] int32, where each text starts, and the end.
        lengths: tokens of each text; the same again, known without asking the device.
        segments: ``token_type_ids``, [1, tokens], of an encoder that :func:`has_segments`; default: all 0.
    """
    output = encoder(
        input_ids=input_ids,
        position_ids=position_ids + position_offset(encoder),
        cu_seq_lens_q=cu_seq_lens,
        lengths=tuple(lengths),  # loaders make lists of tuples
        output_hidden_states=output_hidden_states,
        **segments,
    )
    found: tuple[Tensor, ...] = output.hidden_states if output_hidden_states else (output.last_hidden_state,)
    return found


def pooled(encoder: PreTrainedModel, hidden: Tensor) -> Tensor:
    """What the encoder's pooler makes of texts ([texts, tokens, hidden]): it took the packed ones for one text."""
    pooler: Any = encoder.pooler
    if isinstance(pooler, nn.Linear):  # ALBERT's, which its encoder calls as BERT's pooler does its own
        activation: Any = encoder.pooler_activation
        linear: Tensor = activation(pooler(hidden[:, 0]))
        return linear
    found: Tensor = pooler(hidden)
    return found


def packs(encoder: PreTrainedModel, layout: str) -> bool:
    """Whether texts are packed under a layout, ``auto``, ``padded`` or ``packed``; the encoder is then fit for it.

    Raises:
        ModelError: they should be packed, but the encoder cannot read them so.
    """
    return layout != "padded" and agreed(refusal(encoder), layout)


def will_pack(config: PreTrainedConfig, layout: str) -> bool:
    """The same, as far as an encoder's configuration tells.

    Raises:
        ModelError: as :func:`packs`.
    """
    if layout == "padded":
        return False
    with torch.device("meta"):
        return agreed(_family_refusal(AutoModel.from_config(copy.deepcopy(config))), layout)


def agreed(why_not: str | None, layout: str) -> bool:
    """Whether texts are packed, if nothing is against it (the reason).

    Raises:
        ModelError: they should be, but something is.
    """
    if why_not and layout == "packed":
        raise ModelError(f"layout: packed, but the encoder cannot read packed texts: {why_not}; choose auto or padded")
    if why_not:
        logger.info("Texts are padded, as the encoder cannot read packed ones: %s", why_not)
    return not why_not


def _family_refusal(encoder: PreTrainedModel) -> str | None:
    if encoder._supports_attention_backend:
        return None
    # It would take the name of any attention function, and go on with its own.
    return f"the attention of a {encoder.config.model_type} cannot be replaced"


def refusal(encoder: PreTrainedModel) -> str | None:
    """Why an encoder cannot read packed texts; None where it can, and :data:`ATTENTION` is now its attention.

    It is run, on texts of several lengths, to see that it reads each as it did alone with its own attention. Nothing
    is left changed where it is refused.
    """
    if why := _family_refusal(encoder):
        return why
    given = encoder.config._attn_implementation
    if given == ATTENTION:
        return None
    if given not in ("sdpa", "eager"):
        return f"it was loaded with the attention `{given}`"
    was_training = encoder.training
    encoder.eval()
    try:
        why = _difference(encoder)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        why = f"it does not run on them ({type(error).__name__}: {error})"
    encoder.train(was_training)
    if why:
        encoder.set_attn_implementation(given)
    return why


@torch.no_grad()
def _difference(encoder: PreTrainedModel) -> str | None:
    """What tells packed texts from the same texts read alone, by the encoder's own attention and padded by ours."""
    config: Any = encoder.config
    window = getattr(config, "sliding_window", None) or 0
    lengths = (3, 1, min(window + 9, getattr(config, "max_position_embeddings", 512) // 2), 3)
    embeddings: Any = encoder.get_input_embeddings()
    vocabulary, padding = len(embeddings.weight), getattr(config, "pad_token_id", None) or 0
    ids = (padding + torch.randint(1, vocabulary, (sum(lengths),), generator=torch.Generator())) % vocabulary
    positions = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ids, positions, ends = (one.to(encoder.device) for one in (ids[None], positions[None], ends))
    types = torch.arange(sum(lengths), device=ids.device)[None] // 2 % 2
    segments = {"token_type_ids": types} if has_segments(config) else {}
    alone = _one_by_one(encoder, ids, lengths, segments)
    encoder.set_attn_implementation(ATTENTION)
    for what, found in (
        ("packed", encode_packed(encoder, ids, positions, ends, lengths, False, **segments)[-1]),
        ("padded", _one_by_one(encoder, ids, lengths, segments)),
    ):
        difference, largest = (found - alone).abs().max().item(), alone.abs().max().item()
        # Texts that leak into each other differ in the first digits, rounding in the last half of them.
        if not difference <= torch.finfo(found.dtype).eps ** 0.5 * max(largest, 1):
            return f"hidden states of {what} texts differ by {difference:.2g} from those of texts that it reads alone"
    return None


def _one_by_one(
    encoder: PreTrainedModel, ids: Tensor, lengths: tuple[int, ...], segments: Mapping[str, Tensor]
) -> Tensor:
    """[1, tokens, hidden]"""
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **segments}
    parts = {name: tensor.split(lengths, dim=1) for name, tensor in given.items()}
    texts = [{name: part[place] for name, part in parts.items()} for place in range(len(lengths))]
    return torch.cat([encoder(**text).last_hidden_state for text in texts], dim=1)
