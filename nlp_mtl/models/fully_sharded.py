"""FSDP 2: a model whose parameters are divided among processes, each of which holds a part (a DTensor) of every one.

A layer is whole only while it computes, and all processes have to be there for it: each makes as many passes as the
others, and a parameter is read whole by all together (:func:`whole`) or not at all.
"""

import warnings
from collections.abc import Iterator, Mapping

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from nlp_mtl.models.multitask import MultiTaskModel


def place(model: MultiTaskModel, accelerator: Accelerator) -> None:
    """Bring a model to a process's device: sharded if Accelerate was started with FSDP, else whole.

    Sharding puts other parameters in place of a model's: optimizers have to be made afterwards, copies before.

    Args:
        model: the same weights on all processes. It is divided part by part, so all of it need not fit on the device.
    """
    if not accelerator.is_fsdp2:
        model.to(accelerator.device)
        return
    reshard_after_forward = accelerator.state.fsdp_plugin.reshard_after_forward
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Told of logits that are views, for those who change them in place; the losses do not.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPMultiTaskModel\) returned a view tensor")
    for layer in (*_layers(model.encoder), model.get_input_embeddings()):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """What the outermost lists of modules hold: what is in lists further in (experts) not all processes may need."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _layers(child)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`place` divided it."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Divide again what a forward pass without a backward pass left whole; nothing to do for other models."""
    for module in model.modules() if is_sharded(model) else ():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process holds a part, as all together hold it; others as they are.

    All processes have to call it, for the same tensors in the same order.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a whole tensor, on the device of another that is divided; all of it if that is not."""
    if not isinstance(other, DTensor):
        return tensor
    # Every process has the whole: without a source rank nothing is exchanged.
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of whole weights, which all processes have, into a model that may be sharded.

    Raises:
        RuntimeError: they do not fit.
    """
    own = model.state_dict()
    model.load_state_dict({name: part_of(value, own.get(name, value)) for name, value in weights.items()})


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors on the CPU, each of them :func:`whole`.

    Args:
        keep: on this process; else the answer is empty.
    """
    found = {}
    for name, tensor in tensors.items():
        one = whole(tensor.detach())
        if keep:
            found[name] = one.cpu().contiguous()
    return found


def missing_passes(model: nn.Module, count: int) -> int:
    """How many passes a process has to make besides its own, so that all make as many; 0 unless the model is sharded.

    Args:
        count: its own passes.
    """
    return int(max(gather_object([count]))) - count if is_sharded(model) else 0
