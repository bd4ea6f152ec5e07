"""Dropout on CPU, the same in what it does and quicker at drawing what it drops."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_active = threading.local()


class QuickDropout(TorchFunctionMode):
    """Within it, dropout on CPU draws 16 random bits for a number where stock dropout draws a double.

    The bits are those of numpy's SFC64, as its numbers are quick to make and each context has a generator of its own:
    other threads have no part in it. A rate is rounded to a multiple of 1/65536, and what is kept is scaled by that
    rate. Attention that drops out is written in the open: torch's own would leave its flash kernel and draw doubles.

    Not for layers that run again in the backward pass: modes do not reach there (:func:`quick_dropout` leaves these
    models alone).

    Args:
        seed: settles all bits.
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        super().__init__()
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def __enter__(self) -> "QuickDropout":
        self._outer = getattr(_active, "dropout", None)
        _active.dropout = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _active.dropout = self._outer
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Stock arguments in, stock results out; all that is not dropout on CPU goes on to torch."""
        quick = _QUICK.get(func)
        if quick is not None and args and args[0].device.type == "cpu":
            result = quick(self, *args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
        """As ``functional.dropout``; None where that should do it."""
        dropped = round(p * 2**16)
        if not training or not 0 < dropped < 2**16 or inplace or not input.is_floating_point():
            return None
        return input * self.noise(input, dropped)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        """As ``functional.scaled_dot_product_attention``; None where that should do it."""
        dropped = round(dropout_p * 2**16)
        if not 0 < dropped < 2**16 or is_causal or enable_gqa:
            return None
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if attn_mask is not None:
            # The lowest number instead of -inf: padding that sees nothing, behind a sliding window, gets no NaN.
            lowest = torch.finfo(scores.dtype).min
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros(attn_mask.shape, dtype=scores.dtype).masked_fill_(~attn_mask, lowest)
            else:
                attn_mask = attn_mask.clamp(min=lowest)
            scores = scores + attn_mask
        probabilities = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return (probabilities * self.noise(probabilities, dropped)) @ value

    def noise(self, like: Tensor, dropped: int) -> Tensor:
        """0 for ``dropped`` of 65536 numbers, for the others what makes up for it."""
        count = like.numel()
        bits = self._generator.integers(0, 2**64, (count + 3) // 4, dtype=np.uint64)
        halves = torch.from_numpy(bits.view(np.int16))[:count].view(like.shape)
        noise = torch.ge(halves, dropped - 2**15, out=torch.empty(like.shape, dtype=like.dtype))
        return noise.mul_(2**16 / (2**16 - dropped))


_QUICK: dict[Any, Callable[..., Tensor | None]] = {
    functional.dropout: QuickDropout.dropout,
    functional.scaled_dot_product_attention: QuickDropout.attention,
}


def quick_dropout(model: nn.Module, seed: int | Sequence[int]) -> AbstractContextManager[Any]:
    """:class:`QuickDropout` for a model's forward pass; nothing where layers run again in the backward pass."""
    runs_again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return nullcontext() if runs_again else QuickDropout(seed)


def noise(like: Tensor, rate: float) -> Tensor:
    """What dropout multiplies a tensor with: 0 at this rate, else what makes up for it. Drawn as dropout is here."""
    dropped = round(rate * 2**16)
    quick: QuickDropout | None = getattr(_active, "dropout", None)
    if quick is None or not 0 < dropped < 2**16:
        return functional.dropout(torch.ones_like(like), rate)
    return quick.noise(like, dropped)
