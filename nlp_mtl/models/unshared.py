"""One task's encoder, as it would be if it had never been shared: for checkpoints of stock classes."""

from typing import Any

import torch
from torch import Tensor, nn

from nlp_mtl.errors import ModelError
from nlp_mtl.models.adapters import key
from nlp_mtl.models.attention_heads import with_all_heads
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.sharing import Gate, TaskEmbedding


def encoder_of_task(model: MultiTaskModel, task: str) -> dict[str, Tensor]:
    """The weights of a stock encoder whose last hidden states are what a task's head reads.

    Raises:
        ModelError: a stock encoder has no place for what lies between encoder and head.
    """
    sharing = model.config.sharing or {"strategy": "hard"}
    weights: dict[str, Tensor] = model.encoder.state_dict()
    if model.config.heads_per_layer is not None:
        weights = with_all_heads(model.encoder, weights)
    if sharing["strategy"] == "hard":
        return weights
    if sharing["strategy"] == "towers" and not sharing["cross_stitch"]:
        own, others = f".copies.{key(task)}", ".copies."
        return {name.replace(own, ""): one for name, one in weights.items() if others not in name or f"{own}." in name}
    if sharing["strategy"] == "lora":
        return _merged(weights, task, sharing["alpha"] / sharing["rank"])
    if isinstance(model.sharing, Gate | TaskEmbedding):
        return _folded(model, model.sharing, task, weights)
    what = sharing["strategy"] + ", cross-stitched" * (sharing["strategy"] == "towers")
    raise _no_place(f"what `sharing` ({what}) puts between encoder and heads")


def _merged(weights: dict[str, Tensor], task: str, scale: float) -> dict[str, Tensor]:
    """The encoder's weights with a task's adapters added to them."""
    merged = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            module = name.removesuffix("base_layer.weight")
            up, down = (weights[f"{module}lora_{part}.{key(task)}.weight"] for part in "BA")
            weight = weight + scale * (up @ down)
        merged[name.replace(".base_layer.", ".")] = weight
    return merged


def _folded(
    model: MultiTaskModel, sharing: Gate | TaskEmbedding, task: str, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The encoder's weights, with its last norm scaled by a task's gate, or shifted by its embedding."""
    norm = _last_norm(model)
    if norm is None:
        raise _no_place("a task's gate or embedding: this encoder does not end in a norm of its own")
    weight, bias = f"{norm}.weight", f"{norm}.bias"
    folded = dict(weights)
    with torch.no_grad():
        if isinstance(sharing, Gate):
            scale = sharing(task, [torch.ones_like(weights[weight])])
            folded |= {name: weights[name] * scale for name in (weight, bias) if name in weights}
        elif bias not in weights:
            raise _no_place("a task's embedding: the norm that this encoder ends in has no bias")
        else:
            folded[bias] = sharing(task, [weights[bias]])
    return folded


def _last_norm(model: MultiTaskModel) -> str | None:
    """The name of the encoder's module that gives the last hidden states, if it only scales and shifts; it is run."""
    outputs: list[tuple[str, Any]] = []
    size = model.encoder.config.hidden_size
    norms = {
        name: module
        for name, module in model.encoder.named_modules()
        if isinstance(module, nn.LayerNorm) and module.weight is not None and module.weight.shape == (size,)
    }
    hooks = [
        module.register_forward_hook(lambda _, given, output, name=name: outputs.append((name, output)))
        for name, module in norms.items()
    ]
    was_training = model.encoder.training
    model.encoder.eval()
    try:
        with torch.no_grad():
            ids = torch.ones((1, 2), dtype=torch.long, device=model.device)
            last = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    finally:
        model.encoder.train(was_training)
        for hook in hooks:
            hook.remove()
    names = [name for name, output in outputs if output is last]
    # One that runs in several layers (ALBERT's) would scale them all.
    return names[0] if names and [name for name, _ in outputs].count(names[0]) == 1 else None


def _no_place(what: str) -> ModelError:
    return ModelError(
        f"no stock class has a place for {what}. Push the whole model instead: it loads with this package, or with "
        "trust_remote_code, and `tasks=[...]` runs one head"
    )
