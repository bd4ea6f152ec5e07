"""What makes training on CPU faster and changes nothing of what is learned: memory, dropout, embeddings' gradients."""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # of malloc.h
_LARGE = 2_000_000_000
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones, for the rest of the process.

    It gives back to the system what is larger than 32 MB, and the end of its heap, each time it is freed. The same
    tensors are needed again in the next micro-batch, and then every page of them is a page fault. Threads take their
    tensors from one heap: those that glibc makes for other threads hold at most 64 MB.

    Settings that the user made in the environment stay as they are.

    Returns:
        whether it was done; not without glibc (macOS, Windows, Alpine).
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGE, _M_TOP_PAD: _PAD, _M_ARENA_MAX: 1}
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(key, value) for key, value in settings.items()]  # all of them, also behind one that is refused
    return all(taken)


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


@contextmanager
def quick_step(model: PreTrainedModel, seed: int | Sequence[int]) -> Iterator[None]:
    """All forward and backward passes of a step on CPU belong inside. ``seed``: of its dropout."""
    with sparse_gradient(model.get_input_embeddings()), quick_dropout(model, seed):
        yield


def quick_dropout(model: nn.Module, seed: int | Sequence[int]) -> AbstractContextManager[Any]:
    """:class:`QuickDropout` for a model's forward pass; nothing where layers run again in the backward pass."""
    runs_again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return nullcontext() if runs_again else QuickDropout(seed)


@contextmanager
def sparse_gradient(embedding: nn.Module) -> Iterator[None]:
    """Within it, a micro-batch adds to an embedding's gradient only the rows that it read.

    Else each micro-batch makes a gradient as large as the vocabulary, zeros but for some rows, and adds it to the last.
    The sum is to start as :func:`zero_gradients` makes it: then it is dense for all who read it.
    """
    if not isinstance(embedding, nn.Embedding) or embedding.sparse:
        yield
        return
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False


def zero_gradients(optimizer: torch.optim.Optimizer, embedding: nn.Module) -> None:
    """``optimizer.zero_grad()``, but an embedding's gradient becomes dense zeros, in place where there is one."""
    learned = [parameter for parameter in embedding.parameters() if parameter.requires_grad]
    zeros = [torch.zeros_like(p) if p.grad is None else p.grad.zero_() for p in learned]
    optimizer.zero_grad()
    for parameter, gradient in zip(learned, zeros, strict=True):
        parameter.grad = gradient
