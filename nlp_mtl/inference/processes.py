"""The processes that share a prediction, as a launcher started them."""

import os
from typing import Any

import torch
from accelerate import PartialState

from nlp_mtl.errors import RunError


def launched_processes() -> Any:
    """Accelerate's ``PartialState`` of all processes that were started.

    Raises:
        RunError: it does not find them: each would answer everything.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU, Accelerate takes no notice of several processes unless it is told to use the CPU.
    state: Any = PartialState(cpu=started > 1 and not torch.accelerator.is_available())
    if state.num_processes != started:
        raise RunError(
            f"the launcher started {started} processes, but Accelerate sees {state.num_processes}: start one, or set "
            "ACCELERATE_USE_CPU=true to use the CPUs"
        )
    return state
