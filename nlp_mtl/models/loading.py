"""Trained models: from a run folder, a model folder or the Hub into memory, checked on the way."""

import json
import logging
import os
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedTokenizerBase

from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.errors import ModelError, listed
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.encoder import load_tokenizer
from nlp_mtl.models.fetching import UNREADABLE, cannot_load, check_shards, only_cached, weights_from
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.trained_encoder import model_folder
from nlp_mtl.retrying import retried
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Decoder
from nlp_mtl.words import WORD_SPLITTERS

logger = logging.getLogger(__name__)


def load_model(path: str | Path, *, revision: str | None = None) -> tuple[MultiTaskModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a run folder, a model folder, or a Hub id, on the CPU in float32.

    Raises:
        ModelError: there is no model, or it is not one of ours.
    """
    name = model_folder(os.path.expanduser(path))
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if Path(name).is_dir():
        if revision is not None:
            raise ModelError(f"revision {revision!r} is for models on the Hub, but {path} is a folder: leave it out")
        _check_is_ours(Path(name))
    elif looks_local or Path(name).exists():
        raise ModelError(f"there is no model folder {path}")
    else:
        logger.info("%s is no folder here: it is looked for on the Hub", path)
    try:
        cached = not Path(name).is_dir() and only_cached(name, revision)
        config = retried(
            lambda: MultiTaskConfig.from_pretrained(name, revision=revision or "main", local_files_only=cached)
        )
        if config.meta_learned:
            raise ModelError(
                f"`{path}` is an encoder without heads, as a meta run leaves it: give it as `encoder:` in a recipe"
            )
        if config.model_type != MultiTaskConfig.model_type or not config.tasks:
            raise ModelError(f"`{name}` is not a model of nlp_mtl: its config has no tasks")
        _check_config(config, name)
        check_shards(name, config, revision, cached)
        loaded: Any = weights_from(
            lambda: MultiTaskModel.from_pretrained(
                name, config=config, revision=revision or "main", dtype=torch.float32, output_loading_info=True,
                use_safetensors=True,  # never what would have to be unpickled
                local_files_only=cached,
            )
        )  # fmt: skip
    except RuntimeError as error:  # of other shapes
        raise ModelError(f"model `{path}` cannot be loaded: its weights do not fit its config.json") from error
    except UNREADABLE as error:
        raise cannot_load("model", str(path), error) from error
    model: MultiTaskModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:  # they would be random
        raise ModelError(f"model `{path}` cannot be loaded: its weights lack {listed(missing)}")
    if unknown := sorted(loaded[1]["unexpected_keys"]):  # left out, it would answer otherwise
        raise ModelError(
            f"model `{path}` cannot be loaded: its config.json has no place for the weights {listed(unknown)}"
        )
    return model.eval(), load_tokenizer(name, revision, cached)


def load_config(folder: Path) -> MultiTaskConfig:
    """The configuration of a folder with one of our models, in any form.

    Raises:
        ModelError: it is not one of ours.
    """
    _check_is_ours(folder)
    config = MultiTaskConfig.from_pretrained(folder)
    if not config.tasks:
        raise ModelError(f"`{folder}` is not a model of nlp_mtl: its config has no tasks")
    _check_config(config, str(folder))
    return config


def _check_config(config: MultiTaskConfig, name: str) -> None:
    """That what only an answer would run into is sound."""
    try:
        for task in config.task_list():
            kind_of(task)  # that it is known: a later version may have others
            if task.decoder not in get_args(Decoder):
                raise ValueError(f"the decoder of `{task.name}` is {task.decoder!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the config.json of `{name}` has tasks that cannot be read: {error!r}") from error
    for key, least in (("max_length", 1), ("window_overlap", 0)):
        value = getattr(config, key)
        if not isinstance(value, int) or value < least:
            raise ModelError(f"the config.json of `{name}` has the {key} {value!r}; expected a number from {least} on")
    if config.word_splitter not in WORD_SPLITTERS:
        raise ModelError(
            f"the config.json of `{name}` has the word_splitter `{config.word_splitter}`; known are "
            f"{listed(WORD_SPLITTERS)}"
        )
    try:
        Cleaning.from_dict(config.cleaning)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"the config.json of `{name}` has a cleaning that cannot be read: {error}") from error


def _check_is_ours(folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MultiTaskConfig.model_type:
        raise ModelError(
            f"{folder} holds a model of the type `{found}`, not one of nlp_mtl; "
            "to train on top of it, give it as `encoder:` in a recipe"
        )
