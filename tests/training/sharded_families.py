"""Started by torchrun, two processes: the gradients of sharded encoders of all families are those of whole ones."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import tiny
import torch
from sharded_on_cpu import ShardingAccelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from two_tasks import IDS, MASK, TASKS

from nlp_mtl.models.fully_sharded import gathered, place, reshard
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.training.launcher import fsdp_plugin

EXPERTS = {"num_experts": 2, "expert_size": 4}
SHARINGS: list[dict[str, Any]] = [
    {"strategy": "layer_mix"},
    {"strategy": "gate"},
    {"strategy": "mmoe", **EXPERTS},
    {"strategy": "ple", **EXPERTS, "num_task_experts": 1, "num_levels": 2},
    {"strategy": "towers", "num_layers": 1, "cross_stitch": True},
    {"strategy": "lora", "rank": 2, "alpha": 4},
]


def model(family: str, sharing: dict[str, Any] | None = None) -> MultiTaskModel:
    torch.manual_seed(0)
    return from_encoder(tiny.encoder(family), TASKS, sharing=sharing).train()


def gradients(model: MultiTaskModel, rows: list[int], factor: int = 1) -> dict[str, Tensor]:
    logits = model(IDS[rows], MASK[rows])
    (sum(one.pow(2).sum() for one in logits.values()) * factor).backward()
    return gathered({name: one.grad for name, one in model.named_parameters()}, keep=True)


if __name__ == "__main__":
    warnings.simplefilter("error")
    accelerator = ShardingAccelerator(cpu=True, fsdp_plugin=fsdp_plugin())
    assert accelerator.num_processes == 2
    units = {}
    kinds = {family: (family, None) for family in tiny.FAMILIES} | {one["strategy"]: ("bert", one) for one in SHARINGS}
    for kind, (family, sharing) in kinds.items():
        whole, sharded = model(family, sharing), model(family, sharing)
        place(sharded, accelerator)
        units[kind] = [name for name, module in sharded.named_modules() if isinstance(module, FSDPModule)]
        expected = gradients(whole, [0, 1, 2])
        found = gradients(sharded, [[0], [1, 2]][accelerator.process_index], factor=2)
        assert all(isinstance(one, DTensor) for one in sharded.parameters())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        with torch.inference_mode():
            sharded(IDS, MASK)
        assert not all(isinstance(one, DTensor) for one in sharded.parameters())  # no backward pass divides them again
        reshard(sharded)
        assert all(isinstance(one, DTensor) for one in sharded.parameters())
    if accelerator.is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(units))
