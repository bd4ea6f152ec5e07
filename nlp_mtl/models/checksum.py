"""Checksums of models: of weights, and of all that answers follow from."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nlp_mtl.cleaning.cleaning import NOTHING, VERSION, Cleaning

_TELL_NOTHING = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""What an encoder's configuration says of where it comes from."""

_OF_CALLS = ("padding", "truncation")
"""What a tokenizer keeps of its last call."""


def add_weights(digest: "hashlib._Hash", weights: Mapping[str, Tensor]) -> None:
    """Add weights, by their names, to a checksum."""
    for name, tensor in sorted(weights.items()):
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + plain.numpy().tobytes())


def weights_checksum(model: torch.nn.Module) -> str:
    """Of all weights of a model."""
    weights = model.state_dict()
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in weights.items()}
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode())
    add_weights(digest, weights)
    return digest.hexdigest()


def answers_checksum(model: Any, tokenizer: PreTrainedTokenizerBase, cleaning: Cleaning | None = None) -> str:
    """Of a model's weights, and of what else its answers follow from; the same wherever the model lies.

    Args:
        model: a :class:`nlp_mtl.models.multitask.MultiTaskModel`, or what answers in its place.
        cleaning: what is done to texts; None: as the model's configuration says.
    """
    config = model.config
    keys = ("tasks", "consistency", "word_splitter", "max_length", "window_overlap")
    settings = {key: getattr(config, key) for key in keys}
    encoder, backend = config.encoder_config.to_dict(), json.loads(tokenizer.backend_tokenizer.to_str())
    settings["encoder"] = {key: value for key, value in encoder.items() if key not in _TELL_NOTHING}
    settings["tokenizer"] = {key: value for key, value in backend.items() if key not in _OF_CALLS}
    cleaning = Cleaning.from_dict(config.cleaning) if cleaning is None else cleaning
    if cleaning != NOTHING:
        settings["cleaning"] = {**cleaning.to_dict(), "version": VERSION}
    # Without these the weights are read as they always were.
    settings |= {key: value for key in ("sharing", "heads_per_layer") if (value := getattr(config, key)) is not None}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    add_weights(digest, model.state_dict())
    return digest.hexdigest()
