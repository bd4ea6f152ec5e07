"""Number formats of a pass through the model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(device: torch.device, mixed_precision: str) -> AbstractContextManager[Any]:
    """The context in which a pass runs: bfloat16 matrix products (``bf16``), or nothing (``no``)."""
    return torch.autocast(device.type, torch.bfloat16) if mixed_precision == "bf16" else nullcontext()
