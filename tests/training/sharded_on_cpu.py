"""Started by torchrun: ``nlp-mtl ARGUMENTS`` with the model sharded, on the CPU, where Accelerate itself shards none.

FSDP_VERSION=2 ACCELERATE_USE_FSDP=true torchrun --nproc_per_node N sharded_on_cpu.py ARGUMENTS

With SEEN=FOLDER in the environment each process notes there what its optimizers were given.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import nlp_mtl.training.launcher
from nlp_mtl.cli import main


class ShardingAccelerator(Accelerator):
    """What Accelerate makes of an FSDP plugin on GPUs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state.fsdp_plugin = options["fsdp_plugin"]
        self.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """What this process holds of the parameters, and of their gradients, at each step."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    tensors = parameters + [one.grad for one in parameters if one.grad is not None]
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert all(isinstance(one, DTensor) for one in tensors + moments)
    parts = [one.to_local() for one in moments]
    assert all(one.untyped_storage().nbytes() == one.numel() * one.element_size() for one in parts)
    held = [sum(one.to_local().numel() for one in parameters), sum(one.numel() for one in parameters)]
    seen["steps"].append(held)


if __name__ == "__main__":
    seen: dict[str, Any] = {"steps": []}
    register_optimizer_step_post_hook(note)
    nlp_mtl.training.launcher.Accelerator = ShardingAccelerator  # type: ignore[misc]
    try:
        main()
    finally:
        if "SEEN" in os.environ:
            seen["processes"] = distributed.get_world_size()
            (Path(os.environ["SEEN"]) / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
