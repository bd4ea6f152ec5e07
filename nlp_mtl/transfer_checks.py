"""What is wrong with how a recipe goes about few rows, which only shows when its keys are held against each other."""

from collections.abc import Iterator
from typing import Any

from nlp_mtl.cleaning_checks import augmentations
from nlp_mtl.errors import Problem
from nlp_mtl.strategy_checks import is_true


def feature_problems(training: dict[str, Any], sharing: dict[str, Any], datasets: dict[str, Any]) -> Iterator[Problem]:
    """Why an encoder's hidden states are not the same in every epoch. Reads raw values, whatever they are."""
    if not is_true(training.get("cache_features")):
        return
    path = "training.cache_features"
    if training.get("frozen_layers") != "encoder":
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
