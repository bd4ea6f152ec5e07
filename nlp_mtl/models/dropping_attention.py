"""Attention of packed texts that drops out, on CPU.

Torch's attention would leave its flash kernel for it and work text by text through some dozens of small operations,
which cost more than what they compute. Here texts of nearly the same length are padded to one batch for a few large
ones, and the backward pass is written out.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlp_mtl.models.dropout import noise

_WASTE = 8192
"""Pairs of tokens that padding may add to a batch: what they cost is about what a batch costs (measured, MiniLM)."""


class _Batch(NamedTuple):
    """Texts that are computed together."""

    texts: int
    length: int
    places: Tensor
    """[texts * heads * length] Where their tokens stand in [tokens * heads] rows; any token of theirs for padding."""
    bias: Tensor | None
    """[texts, 1, 1 or length, length] What is added to scores, so that padding and what is far away is not seen."""
    is_token: Tensor | None
    """[texts, 1, length, 1] 0 for padding."""


@lru_cache(maxsize=4)
def _batches(lengths: tuple[int, ...], heads: int, window: int | None) -> tuple[list[_Batch], Tensor]:
    """The batches of packed texts, and where each row of [tokens * heads] stands in all of theirs; once for all layers.

    Args:
        lengths: tokens of each text.
    """
    starts = np.cumsum([0, *lengths])[:-1]
    batches, back, filled = [], np.zeros((sum(lengths), heads), dtype=np.int64), 0
    for first, stop in pairwise(_cuts(lengths)):
        count, longest = stop - first, max(lengths[first:stop])
        head, offsets = np.arange(heads)[:, None], np.arange(longest)
        is_token = offsets < np.array(lengths[first:stop])[:, None]  # [count, longest]
        tokens = starts[first:stop, None] + np.where(is_token, offsets, 0)
        # All of a batch's [text, head, token], in the places of [token, head].
        back.T[:, tokens[is_token]] = (
            (filled + np.arange(count * heads).reshape(count, heads, 1) * longest + offsets)
            .swapaxes(0, 1)[:, is_token]
        )  # fmt: skip
        filled += count * heads * longest
        seen = is_token[:, None, None, :]
        if window is not None and longest > window:
            seen = seen & (abs(offsets[:, None] - offsets) < window)
        batches.append(
            _Batch(
                count,
                longest,
                torch.from_numpy((tokens[:, None] * heads + head).reshape(-1)),
                # The lowest number instead of -inf: padding that sees nothing gets no NaN.
                None if seen.all() else torch.from_numpy(np.where(seen, np.float32(0), np.finfo(np.float32).min)),
                None if is_token.all() else torch.from_numpy(is_token[:, None, :, None].astype(np.float32)),
            )
        )
    return batches, torch.from_numpy(back.reshape(-1))


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Where texts that stand side by side are cut into batches."""
    cuts, longest, squares = [0], 0, 0
    for place, length in enumerate(lengths):
        longest, squares = max(longest, length), squares + length**2
        if (place + 1 - cuts[-1]) * longest**2 - squares > _WASTE:
            cuts.append(place)
            longest, squares = length, length**2
    return [*cuts, len(lengths)]


def attend(
    states: Sequence[Tensor], lengths: tuple[int, ...], window: int | None, dropout: float, scale: float
) -> Tensor:
    """Each text attends to itself, some of it dropped out; in float32 at least, whatever the states are in.

    Args:
        states: query, key and value, [heads, tokens, size] each.
        lengths: tokens of each text.
        window: a token sees those that are less than this away; None: all of its text.
        dropout: the rate.

    Returns:
        [tokens, heads, size]
    """
    given = states[0].dtype
    heads, tokens, size = states[0].shape
    batches, back = _batches(lengths, heads, window)
    kind = torch.promote_types(given, torch.float32)
    flat = [one.transpose(0, 1).to(kind).reshape(-1, size) for one in states]
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Attention.apply(*flat, batches, back, heads, dropout, scale)
    return out.view(tokens, heads, size).to(given)


class _Attention(torch.autograd.Function):
    """``query``, ``key``, ``value``: [tokens * heads, size]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, batches: list[_Batch], back: Tensor, heads: int,
        dropout: float, scale: float,
    ) -> Tensor:  # fmt: skip
        kept, outs = [], []
        for batch in batches:
            shape = (batch.texts * heads, batch.length, -1)
            q, k, v = (states.index_select(0, batch.places).view(shape) for states in (query, key, value))
            scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
            if batch.bias is not None:
                scores.view(batch.texts, heads, batch.length, batch.length).add_(batch.bias)
            probabilities = torch.softmax(scores, -1)
            dropped = noise(probabilities, dropout)
            outs.append(torch.bmm(probabilities * dropped, v).flatten(0, 1))
            kept += [q, k, v, probabilities, dropped]
        ctx.save_for_backward(*kept)
        ctx.batches, ctx.back, ctx.heads, ctx.scale = batches, back, heads, scale
        return torch.cat(outs).index_select(0, back)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts: tuple[list[Tensor], ...] = ([], [], [])
        kept = iter(ctx.saved_tensors)
        for batch in ctx.batches:
            q, k, v, probabilities, dropped = (next(kept) for _ in range(5))
            out = gradient.index_select(0, batch.places)
            if batch.is_token is not None:
                out.view(batch.texts, ctx.heads, batch.length, -1).mul_(batch.is_token)
            out = out.view(q.shape)
            of_value = torch.bmm((probabilities * dropped).transpose(1, 2), out)
            of_probabilities = torch.bmm(out, v.transpose(1, 2)).mul_(dropped)
            # Of softmax: p * (g - sum(p * g)).
            of_scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
            of_scores.mul_(ctx.scale)
            of_query, of_key = torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q)
            for part, one in zip(parts, (of_query, of_key, of_value), strict=True):
                part.append(one.flatten(0, 1))
        return *(torch.cat(part).index_select(0, ctx.back) for part in parts), None, None, None, None, None
