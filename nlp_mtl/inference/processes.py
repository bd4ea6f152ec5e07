"""The processes that share a prediction or a training, as a launcher started them."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState

from nlp_mtl.errors import RunError


def started_processes() -> tuple[int, bool]:
    """How many processes a launcher started, and whether Accelerate has to be told that they use the CPU.

    Without a GPU, it takes no notice of several processes unless it is told.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    return started, started > 1 and not torch.accelerator.is_available()


def check_found(started: int, found: int) -> None:
    """That Accelerate found the processes that were started.

    Raises:
        RunError: it did not: each would do everything.
    """
    if found != started:
        raise RunError(
            f"the launcher started {started} processes, but Accelerate sees {found}: start one, or set "
            "ACCELERATE_USE_CPU=true to use the CPUs"
        )


def launched_processes() -> Any:
    """Accelerate's ``PartialState`` of all processes that were started.

    Raises:
        RunError: it does not find them.
    """
    started, on_cpu = started_processes()
    # Who is done waits for the others, whose rows may take hours longer: NCCL's ten minutes are for steps of training.
    state: Any = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    check_found(started, state.num_processes)
    return state
