"""What is wrong with how a recipe goes about few rows, which only shows when its keys are held against each other."""

import os
from collections.abc import Iterator
from typing import Any

from nlp_mtl.cleaning_checks import augmentations
from nlp_mtl.distillation_checks import LIES_IN, lies_in
from nlp_mtl.errors import Problem
from nlp_mtl.strategy_checks import is_true, number


def start_problems(values: dict[str, Any], tasks: dict[str, Any]) -> Iterator[Problem]:
    """Folders that the run starts from, and would write over. Reads raw values, whatever they are."""
    run = values.get("output_dir")
    written = [f"{run}/{part}" for part in ("model", "compressed", "checkpoints")]
    heads = {f"tasks.{name}.init_from": task.get("init_from") for name, task in tasks.items() if isinstance(task, dict)}
    for path, model in {"encoder": values.get("encoder"), **heads}.items():
        # What is no folder is an id on the Hub, which may begin as the run's folder does.
        is_folder = isinstance(model, str) and os.path.isdir(os.path.expanduser(model))
        # Other folders in a run's are left alone.
        if is_folder and (_is_same(model, run) or any(lies_in(model, part) for part in written)):
            yield Problem(path, LIES_IN)


def _is_same(model: Any, output_dir: Any) -> bool:
    return lies_in(model, output_dir) and lies_in(output_dir, model)


def feature_problems(
    training: dict[str, Any], sharing: dict[str, Any], datasets: dict[str, Any], extension: Any
) -> Iterator[Problem]:
    """Why an encoder's hidden states are not the same in every epoch. Reads raw values, whatever they are."""
    if not is_true(training.get("cache_features")):
        return
    path = "training.cache_features"
    keeps_model = isinstance(extension, dict) and extension.get("freeze") == "model"
    if training.get("frozen_layers") != "encoder" and not keeps_model:
        message = "an encoder that learns gives something else in each step: say `frozen_layers: encoder` as well"
        yield Problem(path, message)
    strategy = sharing.get("strategy", "hard")
    if strategy in ("layer_mix", "towers", "lora"):
        message = "it keeps the last hidden states, which all tasks read, and under `sharing: {}` they read others"
        yield Problem(path, f"{message.format(strategy)}; leave one of both out")
    for key in ("compile", "gradient_checkpointing"):
        if is_true(training.get(key)):
            yield Problem(f"training.{key}", "with `cache_features` the encoder reads each row once: leave it out")
    for name, spec in datasets.items():
        if not isinstance(spec, dict):
            continue
        if augmentations(spec):
            message = "rows that change each time they come cannot be read once (`training.cache_features`)"
            yield Problem(f"datasets.{name}.augmentation", f"{message}; leave one of both out")
        if is_true(spec.get("streaming")):
            message = "neither rows of a stream nor what the encoder gives for them is kept (`training.cache_features`)"
            yield Problem(f"datasets.{name}.streaming", f"{message}; leave one of both out")


_PLAIN: dict[str, dict[str, Any]] = {
    "balancing": {"strategy": "fixed", "scale": "none"},
    "gradients": {"strategy": "sum", "measure_every": None},
    "sharing": {"strategy": "hard"},
}
"""Sections that are about tasks which learn together."""

_UNREAD = {"num_epochs": 3, "unfreeze_every": None, "l1_penalty": 0, "l2_penalty": 0, "compile": False,
           "cache_features": False}  # fmt: skip
"""Keys of ``training`` that a meta run does not read, and their defaults."""


def meta_problems(
    values: dict[str, Any], training: dict[str, Any], datasets: dict[str, Any], tasks: dict[str, Any]
) -> Iterator[Problem]:
    """What does not go with ``meta``. Reads raw values, whatever they are."""
    if not isinstance(values.get("meta"), dict):
        return
    if training.get("max_steps") is None:
        yield Problem("training.max_steps", "needed with `meta`: how many outer steps")
    for key, default in _UNREAD.items():
        given = training.get(key, default)
        if given not in (default, None) and number(given) != default and (default is not False or is_true(given)):
            yield Problem(f"training.{key}", "a meta run (`meta`) does not read it; leave it out")
    if training.get("frozen_layers") == "encoder":
        yield Problem("training.frozen_layers", "the encoder is all that a meta run learns; freeze fewer layers")
    for section, plain in _PLAIN.items():
        told = values.get(section)
        told = told if isinstance(told, dict) else {}
        for key, default in plain.items():
            if told.get(key, default) != default:
                message = "it is for tasks that learn together, and under `meta` each small task is learned alone"
                yield Problem(f"{section}.{key}", f"{message}; leave it out")
    sampling = values.get("sampling")
    strategy = sampling.get("strategy", "proportional") if isinstance(sampling, dict) else "proportional"
    if strategy in ("unimax", "annealed", "round_robin", "dynamic"):
        message = f"`meta` deals episodes by proportional, temperature, uniform or fixed, not by {strategy}"
        yield Problem("sampling.strategy", message)
    for key in ("consistency", "distillation", "hub"):
        if values.get(key):
            yield Problem(key, "it is for models that answer, and a meta run ends in an encoder alone: leave it out")
    for name, spec in datasets.items():
        for key in ("streaming", "oversample", "undersample") if isinstance(spec, dict) else ():
            if spec.get(key) and (key != "streaming" or is_true(spec[key])):
                yield Problem(f"datasets.{name}.{key}", "`meta` draws rows label by label; leave it out")
        if isinstance(spec, dict) and "entity_swap" in augmentations(spec):
            message = "it would bring entities of rows that a small task does not hold (`meta`); leave it out"
            yield Problem(f"datasets.{name}.augmentation.entity_swap", message)
    for name, task in tasks.items():
        if not isinstance(task, dict):
            continue
        if task.get("type") in ("multi-label-classification", "regression"):
            message = f"small tasks of a {task['type']} task are not made (`meta`): text- or token-classification"
            yield Problem(f"tasks.{name}.type", message)
        if task.get("class_weights") == "balanced":
            message = (
                "they are counted over all rows, and small tasks hold as many of each label (`meta`); leave it out"
            )
            yield Problem(f"tasks.{name}.class_weights", message)
        if task.get("decoder") == "crf" or task.get("init_from") is not None:
            key = "decoder" if task.get("decoder") == "crf" else "init_from"
            yield Problem(f"tasks.{name}.{key}", "the head of a small task is new each time (`meta`); leave it out")
