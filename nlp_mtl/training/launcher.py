"""What the launcher asks for, and what of it is supported."""

import logging
import os
from typing import Any

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, GradientAccumulationPlugin

from nlp_mtl.errors import RunError, listed
from nlp_mtl.inference.processes import check_found, started_processes

logger = logging.getLogger(__name__)

_SPLITS_MODELS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What `accelerate launch` sets, and what for."""


def launched_accelerator(mixed_precision: str, **tracking: Any) -> Accelerator:
    """Processes and devices as Accelerate finds them; what is learned is the recipe's business alone.

    Args:
        tracking: of :func:`nlp_mtl.training.trackers.tracking_arguments`.

    Raises:
        RunError: the launcher asks for what is not supported, or Accelerate does not find the processes that were
            started: each would train for itself, in the same folder.
    """
    sharding = fsdp_plugin()
    launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched_with not in ("no", mixed_precision):
        logger.warning(
            "The launcher asks for %s, but the recipe's training.mixed_precision (%s) counts",
            launched_with, mixed_precision,
        )  # fmt: skip
    # The trainer says itself what runs in bfloat16, and which micro-batches make a step.
    steps = GradientAccumulationPlugin(num_steps=1)
    started, on_cpu = started_processes()
    accelerator = Accelerator(
        mixed_precision="no", gradient_accumulation_plugin=steps, fsdp_plugin=sharding, cpu=on_cpu, **tracking
    )
    check_found(started, accelerator.num_processes)
    check_kind(accelerator, sharding)
    return accelerator


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """How the launcher wants the model to be sharded; None: each process is to hold all of it.

    It is asked of the launcher, as Accelerate takes no notice of some of it on CPU.

    Raises:
        RunError: it asks for what is not supported.
    """
    wanted = [name for key, name in _SPLITS_MODELS.items() if _is_set(key)]
    if wanted:
        raise not_supported(f"the launcher asks for {listed(wanted)}")
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    found = os.environ.get("FSDP_VERSION", "1")
    if found != "2":
        raise not_supported(f"the launcher asks for FSDP version {found}")
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        raise RunError("fsdp_offload_params: true is not supported: set it to false in Accelerate's config file")
    if _is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        raise RunError(
            "fsdp_activation_checkpointing: true would change the names of the weights: set it to false in "
            "Accelerate's config file, and training.gradient_checkpointing: true in the recipe"
        )
    # Else all processes but one would begin with weights that nobody has set, and try them out.
    return FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)


def check_kind(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """See that Accelerate does what the launcher asked for.

    Raises:
        RunError: it does not, or something that is not supported.
    """
    kind = accelerator.distributed_type.value
    if plugin is not None and not accelerator.is_fsdp2:
        raise RunError(
            "the launcher asks for FSDP, but Accelerate would train the whole model on each process "
            f"(device: {accelerator.device.type}, processes: {accelerator.num_processes}): it shards on several GPUs, "
            "not on CPU. Start with torchrun to train without FSDP"
        )
    if plugin is None and kind != "NO" and not kind.startswith("MULTI_"):
        raise not_supported(f"Accelerate makes it a run of the kind {kind}")


def not_supported(found: str) -> RunError:
    """The error for a way of splitting a model that is not supported."""
    return RunError(
        f"{found}, but only data parallelism (DDP), where each process holds the whole model, and FSDP version 2 are "
        "supported: in Accelerate's config file set distributed_type: MULTI_GPU, or distributed_type: FSDP with "
        "fsdp_version: 2 below fsdp_config; or start with torchrun. If memory runs out, lower training.max_tokens"
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")
