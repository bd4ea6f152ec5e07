"""What makes training on CPU faster and changes nothing of what is learned: memory, embeddings' gradients."""

import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_mtl.models.dropout import quick_dropout

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


@contextmanager
def quick_step(model: PreTrainedModel, seed: int | Sequence[int]) -> Iterator[None]:
    """All forward and backward passes of a step on CPU belong inside. ``seed``: of its dropout."""
    with sparse_gradient(model.get_input_embeddings()), quick_dropout(model, seed):
        yield


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
