"""What is wrong with how a recipe weighs its tasks, which only shows when keys are held against each other."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nlp_mtl.errors import Problem, did_you_mean, listed
from nlp_mtl.task_types import kind_named

SAMPLING_DEFAULTS: dict[str, Any] = {"temperature": 2.0, "shares": {}, "max_passes": 4.0, "need": "metric",
                                     "targets": {}, "floor": 0.2}  # fmt: skip
"""What sampling strategies read, where the recipe does not say."""

_SAMPLED_BY = {"temperature": ("temperature",), "shares": ("fixed",), "max_passes": ("unimax",), "need": ("dynamic",),
               "targets": ("dynamic",), "floor": ("dynamic",)}  # fmt: skip
"""The strategies that read a key."""

BALANCING_DEFAULTS: dict[str, Any] = {"temperature": 2.0, "learning_rate": None, "period": None}
"""What balancing strategies read, where the recipe does not say."""

_BALANCED_BY = {
    "temperature": ("dwa", "smooth_maximum"),
    "learning_rate": ("uncertainty", "imtl_l", "famo"),
    "period": ("dwa",),
}
"""The strategies that read a key."""


def balancing_problems(balancing: dict[str, Any], tasks: dict[str, Any]) -> Iterator[Problem]:
    """Keys that the strategy does not read, or that do not go with the tasks. Reads raw values, whatever they are."""
    yield from _unread("balancing", balancing, BALANCING_DEFAULTS, _BALANCED_BY)
    if balancing.get("scale") == "log_classes" and (unlabelled := _without_labels(tasks)):
        yield Problem("balancing.scale", f"{unlabelled}; say `loss_weight` instead")


def _without_labels(tasks: dict[str, Any]) -> str:
    """Why it is not known what guessing loses; empty: it is."""
    kinds = {str(name): kind_named(task.get("type")) for name, task in tasks.items() if isinstance(task, dict)}
    found = [name for name, kind in kinds.items() if kind is not None and kind.guess_loss is None]
    return f"what guessing loses follows from labels, and {listed(found)} has numbers" if found else ""


def _unread(
    section: str, values: dict[str, Any], defaults: dict[str, Any], read_by: Mapping[str, tuple[str, ...]]
) -> Iterator[Problem]:
    """Keys of a section that its strategy does not read, where they say anything but the default."""
    for key, default in defaults.items():
        given = values.get(key, default)
        unchanged = given == default or (default is not None and number(given) == default)
        if not unchanged and values.get("strategy") not in read_by[key]:
            message = f"only `strategy:` {listed(read_by[key])} reads it; leave it out, or `{section}.{key}=null`"
            yield Problem(f"{section}.{key}", message)


GRADIENTS_DEFAULTS: dict[str, Any] = {"c": 0.5, "alpha": None, "beta": 0.01, "learning_rate": 0.025,
                                      "measure_every": None}  # fmt: skip
"""What gradient strategies read, where the recipe does not say."""

_COMBINED_BY = {"c": ("cagrad",), "alpha": ("fairgrad", "gradnorm"), "beta": ("gradvac",),
                "learning_rate": ("gradnorm",), "measure_every": ("sum",)}  # fmt: skip
"""The strategies that read a key."""


def gradients_problems(gradients: dict[str, Any], training: dict[str, Any]) -> Iterator[Problem]:
    """Keys that the strategy does not read, or that do not go with it. Reads raw values, whatever they are."""
    strategy = gradients.get("strategy", "sum")
    looks_ahead = is_true(gradients.get("look_ahead"))
    defaults = {key: value for key, value in GRADIENTS_DEFAULTS.items() if not (looks_ahead and key == "measure_every")}
    yield from _unread("gradients", {**gradients, "strategy": strategy}, defaults, _COMBINED_BY)
    if looks_ahead and gradients.get("measure_every") is None:
        yield Problem("gradients.look_ahead", "say in which steps: `measure_every: 100`, say")
    if gradients.get("measured_layers") and strategy == "sum" and gradients.get("measure_every") is None:
        yield Problem("gradients.measured_layers", "nothing is measured: give `measure_every` as well")
    if strategy != "sum" or gradients.get("measure_every") is not None:
        if is_true(training.get("compile")):
            message = "compiled layers go back once, the gradients of several tasks need more; leave one of both out"
            yield Problem("training.compile", message)
        if training.get("unfreeze_every") is not None:
            message = "layers that do not learn yet would have a say in the tasks' conflicts; leave one of both out"
            yield Problem("training.unfreeze_every", message)


def alone_problems(balancing: dict[str, Any], gradients: dict[str, Any]) -> Iterator[Problem]:
    """What weighs tasks against each other, where each step learns from one alone. Reads raw values."""
    alone = "but under `sampling: round_robin` each step here has one task alone; leave one of both out"
    found = {"balancing.strategy": balancing.get("strategy"), "gradients.strategy": gradients.get("strategy")}
    for key, strategy in found.items():
        if strategy in ("maximum", "smooth_maximum", "famo") or (
            key.startswith("gradients") and strategy not in (None, "sum")
        ):
            yield Problem(key, f"{strategy} weighs the tasks of a step against each other, {alone}")
    if gradients.get("measure_every") is not None:
        yield Problem("gradients.measure_every", f"it compares the tasks of a step, {alone}")


def consistency_problems(consistency: list[Any], tasks: dict[str, Any], datasets: dict[str, Any]) -> Iterator[Problem]:
    """Pairs of tasks whose labels cannot be chosen together. Reads raw values, whatever they are."""
    used: set[str] = set()
    for place, one in enumerate(consistency):
        names = one.get("tasks") if isinstance(one, dict) else None
        if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            continue  # the schema tells
        path = f"consistency.{place}.tasks"
        if unknown := [name for name in names if name not in tasks]:
            yield Problem(path, f"there is no task `{unknown[0]}`.{did_you_mean(unknown[0], map(str, tasks))}")
            continue
        if again := [name for name in names if name in used] or names[1:] * (names[0] == names[1]):
            yield Problem(path, f"`{again[0]}` stands twice: a task's labels go together with those of one other")
        used.update(names)
        both = [task for name in names if isinstance(task := tasks[name], dict)]
        kinds = [kind for task in both if (kind := kind_named(task.get("type"))) is not None]
        alike = {kind.reads_words for kind in kinds}, {kind.label_set for kind in kinds}
        if kinds and (len(alike[0]) > 1 or alike[1] != {"one"}):
            yield Problem(path, "two token-classification or two text-classification tasks go together, no others")
        if all(task.get("decoder") == "crf" for task in both):
            yield Problem(path, "both have the decoder crf; one of both can have a chain of its own")
        pairs = {bool(datasets[name].get("text_pair")) for task in both for name in read_by(task) if name in datasets}
        if len(pairs) > 1:
            yield Problem(path, "one reads pairs of texts and the other single ones")


def only_scored(values: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The tasks of a trained model, and the datasets of theirs, that a recipe which extends it has for evaluation
    alone: nothing is replayed. Reads raw values, whatever they are."""
    extension, tasks = (
        section if isinstance(section := values.get(key), dict) else {} for key in ("extension", "tasks")
    )
    named = extension.get("old_tasks")
    if extension.get("replay") is not None or not isinstance(named, list):
        return set(), set()
    old, read = {str(name) for name in named}, {True: set[str](), False: set[str]()}
    for name, task in tasks.items():
        if isinstance(task, dict):
            read[name in old].update(map(str, read_by(task)))
    return old, read[True] - read[False]


def read_by(task: dict[str, Any]) -> list[Any]:
    """The datasets that a task reads. Reads raw values, whatever they are."""
    dataset = task.get("dataset")
    return dataset if isinstance(dataset, list) else [dataset]


SHARING_DEFAULTS: dict[str, Any] = {"num_layers": 2, "cross_stitch": True, "num_experts": 4, "expert_size": 256,
                                    "num_task_experts": 1, "num_levels": 1, "rank": 8, "alpha": 16}  # fmt: skip
"""What sharing strategies read, where the recipe does not say."""

SHARED_BY = {"num_layers": ("towers",), "cross_stitch": ("towers",), "num_experts": ("mmoe", "ple"),
             "expert_size": ("mmoe", "ple"), "num_task_experts": ("ple",), "num_levels": ("ple",),
             "rank": ("lora",), "alpha": ("lora",)}  # fmt: skip
"""The strategies that read a key."""


def sharing_problems(sharing: dict[str, Any], training: dict[str, Any]) -> Iterator[Problem]:
    """Keys that the strategy does not read, or that do not go with it. Reads raw values, whatever they are."""
    yield from _unread("sharing", sharing, SHARING_DEFAULTS, SHARED_BY)
    strategy = sharing.get("strategy")
    if strategy == "lora" and training.get("layout") == "packed":
        yield Problem("training.layout", "each row goes through its task's adapter (`sharing: lora`): auto or padded")
    if strategy in ("lora", "towers", "layer_mix") and is_true(training.get("compile")):
        yield Problem("training.compile", f"not together with `sharing: {strategy}`; leave one of both out")


def sampling_problems(
    sampling: dict[str, Any],
    training: dict[str, Any],
    datasets: dict[str, Any],
    tasks: dict[str, Any],
    learned: dict[str, Any],
) -> Iterator[Problem]:
    """Keys that the strategy does not read, or that name nothing. Reads raw values, whatever they are.

    ``learned``: of the tasks, those that are not for evaluation alone.
    """
    strategy = sampling.get("strategy")
    yield from _unread("sampling", sampling, SAMPLING_DEFAULTS, _SAMPLED_BY)
    if strategy in ("temperature", "annealed", "round_robin", "dynamic") and len(datasets) == 1:
        yield Problem("sampling.strategy", f"there is one dataset, so {strategy} has nothing to mix: leave it out")
    yield from _share_problems(sampling, datasets)
    targets = sampling.get("targets")
    for name in targets if isinstance(targets, dict) else ():
        if name not in tasks:
            near = did_you_mean(str(name), map(str, tasks))
            yield Problem(f"sampling.targets.{name}", f"there is no such task; there are {listed(tasks)}.{near}")
    if targets and sampling.get("need") == "loss":
        yield Problem("sampling.targets", "only `need: metric` reads them")
    if strategy == "dynamic" and sampling.get("need") == "loss" and (unlabelled := _without_labels(learned)):
        yield Problem("sampling.need", f"{unlabelled}; take `need: metric`")
    passes, epochs = number(sampling.get("max_passes", 4.0)), number(training.get("num_epochs", 3))
    if strategy == "unimax" and passes < epochs and training.get("max_steps") is None:
        yield Problem(
            "sampling.max_passes",
            f"{passes:g} passes over each dataset are less than `training.num_epochs` {epochs:g} needs; raise it, or "
            "take fewer epochs",
        )


def _share_problems(sampling: dict[str, Any], datasets: dict[str, Any]) -> Iterator[Problem]:
    shares, is_fixed = sampling.get("shares"), sampling.get("strategy") == "fixed"
    if is_fixed and isinstance(shares or {}, dict):
        given = shares or {}
        for name in given:
            if name not in datasets:
                near = did_you_mean(str(name), map(str, datasets))
                there = f"there is no such dataset; there are {listed(datasets)}.{near}"
                yield Problem(f"sampling.shares.{name}", there)
        missing = [name for name in datasets if name not in given]
        if missing:
            yield Problem("sampling.shares", f"say what {listed(missing)} gives; 0: it is not trained on")
        elif all(number(share) == 0 for share in given.values()):
            yield Problem("sampling.shares", "all shares are 0, so there is nothing to train on")


def class_balance_problems(name: str, dataset: dict[str, Any], tasks: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong with the balance of a dataset's classes."""
    if dataset.get("oversample") and dataset.get("undersample"):
        yield Problem(f"datasets.{name}.undersample", "`oversample` is given as well; choose one")
    for key in ("oversample", "undersample"):
        given = dataset.get(key)
        if not isinstance(given, str):
            continue
        task = tasks.get(given)
        if given not in tasks:
            yield Problem(
                f"datasets.{name}.{key}",
                f"there is no task `{given}`; there are {listed(tasks)}.{did_you_mean(given, map(str, tasks))}",
            )
        elif isinstance(task, dict):
            read = task.get("dataset")
            if name not in (read if isinstance(read, list) else [read]):
                yield Problem(f"datasets.{name}.{key}", f"the task `{given}` does not read this dataset")
            elif why := _no_class(task.get("type")):
                yield Problem(f"datasets.{name}.{key}", f"`{given}` {why}")
        if is_true(dataset.get("streaming")):
            yield Problem(f"datasets.{name}.{key}", "the classes of a stream are not known before it is read")


def _no_class(type: Any) -> str:
    """Why a row of a task does not have one class; empty: it has, or nobody knows."""
    kind = kind_named(type)
    if kind is None or (kind.label_set == "one" and not kind.reads_words):
        return ""
    if kind.reads_words:
        return "is a token task; a text has one class, words many"
    return "has any number of labels a text" if kind.label_set == "many" else "has numbers, no classes"


def is_true(value: Any) -> bool:
    """Whether a value will be read as true, as YAML or an override may write it."""
    return value in (True, "1") or (isinstance(value, str) and value.lower() in ("true", "t", "yes", "y", "on"))


def number(value: Any) -> float:
    """A value as a number, texts such as 5e-5 too; not a number if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
