"""Number formats of a pass through the model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(device: torch.device, mixed_precision: str, sharded: bool = False) -> AbstractContextManager[Any]:
    """The context in which a pass runs: bfloat16 matrix products (``bf16``), or nothing (``no``).

    Args:
        sharded: the model is; its weights in bfloat16 are then not kept for a second use in the pass.
    """
    if mixed_precision != "bf16":
        return nullcontext()
    # On CPU threads share steps, but torch has one cache of weights in bfloat16 for all, which each of them empties.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cpu" and not sharded)
