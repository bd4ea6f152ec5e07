"""Training that starts from a trained model, heads and all, in place of an encoder: ``compression.model``."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nlp_mtl.build_cleaning import model_cleaning
from nlp_mtl.build_consistency import consistency
from nlp_mtl.build_data import Prepared
from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.compression.rebuilding import rebuilt
from nlp_mtl.data.items import frame
from nlp_mtl.errors import ModelError, Problem, RecipeError, listed
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.encoder import load_encoder_config, load_tokenizer, set_dropout
from nlp_mtl.models.loading import load_config, load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe


def of_model(config: MultiTaskConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What :func:`nlp_mtl.build_data.prepare` has to be told of a trained model."""
    return {
        "tokenizer": tokenizer,
        "framing": frame(tokenizer, config.max_length, config.window_overlap),
        "word_splitter": config.word_splitter,
        "cleaning": Cleaning.from_dict(config.cleaning),
        "trained_tasks": config.task_list(),
    }


def start_of(recipe: Recipe) -> Path | None:
    """The folder of the model that a recipe's training starts from; None: it starts from the encoder."""
    name = recipe.compression.model if recipe.compression else None
    return None if name is None else Path(name).expanduser()


def encoder_config(recipe: Recipe) -> PreTrainedConfig:
    """The configuration of the encoder that is trained.

    Raises:
        ModelError: it cannot be loaded.
    """
    start = start_of(recipe)
    if start is None:
        return load_encoder_config(recipe.encoder, recipe.encoder_revision)
    config: PreTrainedConfig = load_config(start).encoder_config
    return config


def start_arguments(recipe: Recipe) -> dict[str, Any]:
    """What :func:`nlp_mtl.build_data.prepare` has to be told of the model that training starts from.

    Raises:
        ModelError: there is no such model, or the recipe lacks one of its tasks.
        RecipeError: the recipe has tasks that it lacks, says otherwise what it keeps, or windows do not fit.
    """
    start = start_of(recipe)
    if start is None:
        return {}
    config = load_config(start)
    check_start(recipe, config)
    return of_model(config, load_tokenizer(str(start)))


def check_start(recipe: Recipe, config: MultiTaskConfig) -> None:
    """That training by a recipe can start from a model.

    Raises:
        ModelError: the recipe lacks one of its tasks.
        RecipeError: it has others, says otherwise what the model keeps, or windows do not fit.
    """
    if missing := [task.name for task in config.task_list() if task.name not in recipe.tasks]:
        raise ModelError(
            f"the model to train on has the tasks {listed(missing)}, which the recipe lacks: they would be left behind "
            "where the encoder goes. Give a recipe with all tasks of the model"
        )
    problems = [
        Problem(f"tasks.{name}", "the model to train on has no such task: leave it out, or add it by `nlp-mtl extend`")
        for name in recipe.tasks if name not in {task.name for task in config.task_list()}
    ]  # fmt: skip
    problems += [
        Problem(key, f"found {said!r}, but the model to train on has {own!r} and keeps it: say the same")
        for key, said, own in _kept(recipe, config)
        if said != own
    ]
    if config.max_length > recipe.training.max_tokens:
        found = f"found {recipe.training.max_tokens}, but a window of {config.max_length} tokens has to fit"
        problems.append(Problem("training.max_tokens", f"{found}: raise it"))
    if problems:
        raise RecipeError(problems)


def _kept(recipe: Recipe, config: MultiTaskConfig) -> Iterator[tuple[str, Any, Any]]:
    """What a model keeps, whatever a recipe says: the key, what the recipe says, what the model has."""
    hard = {"strategy": "hard"}
    yield "sharing", recipe.sharing.settings() or hard, config.sharing or hard
    yield "word_splitter", recipe.word_splitter, config.word_splitter
    yield "window_overlap", recipe.window_overlap, config.window_overlap
    yield "cleaning", model_cleaning(recipe).to_dict(), Cleaning.from_dict(config.cleaning).to_dict()
    if recipe.max_length is not None:
        yield "max_length", recipe.max_length, config.max_length
    if config.encoder_origin:  # which tells only the last part of a folder
        own = config.encoder_origin[-1]["name"]
        yield "encoder", own if Path(recipe.encoder).absolute().name == own else recipe.encoder, own
    for task in config.task_list():
        if task.name in recipe.tasks and (decoder := recipe.tasks[task.name].decoder) is not None:
            yield f"tasks.{task.name}.decoder", decoder, task.decoder


def start_model(recipe: Recipe, prepared: Prepared) -> MultiTaskModel | None:
    """The model that a recipe's training starts from; None: it starts from the encoder.

    Raises:
        ModelError: it cannot be loaded.
    """
    start = start_of(recipe)
    if start is None:
        return None
    model, _ = load_model(start)
    if recipe.training.dropout is not None:
        config = copy.deepcopy(model.config)
        set_dropout(config.encoder_config, recipe.training.dropout)
        model = rebuilt(config, model.state_dict())
    model.config.consistency = consistency(recipe, prepared) or None
    return model
