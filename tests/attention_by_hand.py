"""Attention of packed texts in the open, to hold ours against."""

import torch
from torch import Tensor

HEADS, SIZE = 2, 4


def states(tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value, [heads, tokens, size] each."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(HEADS, tokens, SIZE, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def by_hand(
    given: list[Tensor], lengths: list[int], window: int | None, scale: float, kept: list[Tensor] | None = None
) -> Tensor:
    """Softmax attention of each text alone. ``kept``: what its probabilities are multiplied with."""
    out = []
    for place, (q, k, v) in enumerate(zip(*(one.split(lengths, dim=1) for one in given), strict=True)):
        scores = q @ k.transpose(1, 2) * scale
        far = [[window is not None and abs(i - j) >= window for j in range(q.shape[1])] for i in range(q.shape[1])]
        probabilities = scores.masked_fill(torch.tensor(far), -torch.inf).softmax(-1)
        out.append((probabilities if kept is None else probabilities * kept[place]) @ v)
    return torch.cat(out, dim=1).transpose(0, 1)
