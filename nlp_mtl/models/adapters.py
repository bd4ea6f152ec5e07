"""Low-rank adapters of tasks in an encoder's layers, by peft.

Needs torch alone until an adapter is made: the file goes with a model's weights, as sharing.py does.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def build_adapters(encoder: Any, tasks: Sequence[str], rank: int, alpha: int) -> None:
    """Put low-rank adapters into all linear maps of an encoder's layers, one a task; they first change nothing.

    (Hu et al. 2021, "LoRA: low-rank adaptation of large language models", arXiv 2106.09685; by peft.)

    Raises:
        ImportError: peft is not installed.
        ValueError: the encoder cannot have adapters by row.
    """
    try:  # in a block, as transformers would refuse the file wherever peft is not installed
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("per-task adapters need peft: pip install peft") from error

    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    targets = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the task's before
        for task in tasks:
            settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
            inject_adapter_in_model(settings, encoder, adapter_name=key(task))
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.replace(".base_layer.", ".") in learning)
    for module in encoder.modules():
        if hasattr(module, "lora_A"):
            module.row_adapters = []
            module.register_forward_pre_hook(_by_row, with_kwargs=True)
            for part in (*parts(module.lora_A), *parts(module.lora_B)):
                part._is_hf_initialized = True  # an encoder's own way to start would not leave them at 0
    _try_adapters(encoder, tasks)


def _try_adapters(encoder: Any, tasks: Sequence[str]) -> None:
    if encoder.device.type == "meta":  # it is about to be loaded, so it was tried before it was saved
        return
    ids = torch.ones((2, 2), dtype=torch.long, device=encoder.device)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            adapt(encoder, ids, torch.ones_like(ids), dict.fromkeys(tasks))
    except ValueError as error:  # DeBERTa's maps read positions as well, which belong to no row
        family = encoder.config.model_type
        raise ValueError(f"the layers of a {family} read more than rows of texts, so none can have adapters") from error
    finally:
        encoder.train(was_training)


def _by_row(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": module.row_adapters}


def adapt(
    encoder: Any, input_ids: Tensor, mask: Tensor, rows: Mapping[str, Tensor | None], **segments: Tensor
) -> dict[str, Any]:
    """``{task: what the encoder gives for its rows (None: all) with its adapter}``, from one pass over all of them.

    A task without rows takes one along, of which nothing is left: its adapter still takes part in the backward pass.
    ``segments``: ``token_type_ids``, where there are pairs of texts and the encoder tells them apart.
    """
    every = torch.arange(input_ids.shape[0], device=input_ids.device)
    chosen = {task: every if places is None else places for task, places in rows.items()}
    read = {task: places if len(places) else every[:1] for task, places in chosen.items()}
    names = [key(task) for task, places in read.items() for _ in range(len(places))]
    for module in encoder.modules():
        if hasattr(module, "lora_A"):
            module.row_adapters = names
    places = torch.cat([*read.values()])
    inputs = {"input_ids": input_ids, "attention_mask": mask, **segments}
    output = encoder(**{name: tensor[places] for name, tensor in inputs.items()})
    found, first = {}, 0
    for task in chosen:
        rows_of_task = slice(first, first + len(chosen[task]))
        pooled = output.get("pooler_output")
        found[task] = type(output)(
            last_hidden_state=output.last_hidden_state[rows_of_task],
            **({} if pooled is None else {"pooler_output": pooled[rows_of_task]}),
        )
        first += len(read[task])
    return found


OWN = "_task"
"""The end of what a task's own modules are called: a task may have any name, a module's attributes may not."""


def key(task: str) -> str:
    """What a task's own modules are called."""
    return task + OWN


def parts(module: nn.Module) -> list[Any]:
    """All modules and parameters."""
    return [*module.modules(), *module.parameters()]
