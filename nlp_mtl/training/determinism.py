"""The same sums in the same order: what a GPU needs to repeat and to resume a run bit for bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nlp_mtl.errors import TrainingError

_HINT = "give the key `training.deterministic: false`; the run then ends the same only to rounding"
_CUBLAS_HINT = "set CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts, as CUDA was used before the training, or "


@contextmanager
def deterministic_kernels(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """On CUDA, take only kernels that add up in one order, as long as this lasts; on CPU all of ours do.

    Without it, attention's backward pass splits the keys of long texts among blocks that add to the same gradient in
    the order in which they end. See `Reproducibility <https://docs.pytorch.org/docs/stable/notes/randomness.html>`_.

    Args:
        wanted: False: leave everything as it is.

    Raises:
        TrainingError: an operation of the encoder has no such kernel.
    """
    if device.type != "cuda" or not wanted:
        yield
        return
    # cuBLAS reads it once, at its first product; without it torch refuses all products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic  # its attributes are made when it is imported
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filled = settings.fill_uninitialized_memory
    # Not merely a warning: attention takes its deterministic kernel only where another would be an error.
    torch.use_deterministic_algorithms(True, warn_only=False)
    settings.fill_uninitialized_memory = False  # nothing here reads memory that it has not written
    try:
        yield
    except RuntimeError as error:
        if "torch.use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).split(", but ")[0]
        hint = _CUBLAS_HINT + _HINT if "CUBLAS_WORKSPACE_CONFIG" in str(error) else _HINT
        raise TrainingError(f"an operation cannot be repeated bit for bit on this GPU ({reason}): {hint}") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled
