"""Started by torchrun: trains a recipe, and notes on each process what DistributedDataParallel was asked to do.

torchrun --nproc_per_node N ddp_observer.py RECIPE FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from nlp_mtl import Recipe, train

seen: dict[str, Any] = {"prepared": [], "loaders": 0, "events": []}


def note_reductions(events: list[str], bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP calls it for each bucket of gradients that it is about to reduce; at the last one all are."""
    if bucket.is_last():
        events.append("reduced")
    return allreduce_hook(None, bucket)


class Observed(Accelerator):
    """Notes what is prepared, and each forward pass, reduction and optimizer step, in their order."""

    def prepare(self, *objects: Any, **options: Any) -> Any:
        seen["prepared"] += [type(one).__name__ for one in objects]
        model, optimizer = super().prepare(*objects, **options)
        assert isinstance(model, DistributedDataParallel)
        seen["find_unused_parameters"], seen["static_graph"] = model.find_unused_parameters, model.static_graph
        model.register_comm_hook(seen["events"], note_reductions)
        model.register_forward_pre_hook(lambda *_: seen["events"].append("forward"))
        optimizer.optimizer.register_step_post_hook(lambda *_: seen["events"].append("step"))
        return model, optimizer

    def prepare_data_loader(self, *arguments: Any, **options: Any) -> Any:
        seen["loaders"] += 1
        return super().prepare_data_loader(*arguments, **options)


if __name__ == "__main__":
    recipe, folder = sys.argv[1:]
    import nlp_mtl.training.launcher

    nlp_mtl.training.launcher.Accelerator = Observed  # type: ignore[misc]
    train(Recipe.from_yaml(recipe))
    (Path(folder) / f"{distributed.get_rank()}.json").write_text(json.dumps(seen))
