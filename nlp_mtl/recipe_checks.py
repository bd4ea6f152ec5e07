"""What is wrong with a recipe that only shows when its keys are held against each other."""

import re
from collections.abc import Iterator
from typing import Any

from nlp_mtl.cleaning_checks import cleaning_problems
from nlp_mtl.compression_checks import compression_problems
from nlp_mtl.distillation_checks import distillation_problems, steps_have_one_task
from nlp_mtl.errors import Problem, did_you_mean, listed
from nlp_mtl.extension_checks import extension_problems
from nlp_mtl.strategy_checks import (
    alone_problems,
    balancing_problems,
    class_balance_problems,
    consistency_problems,
    gradients_problems,
    is_true,
    number,
    only_scored,
    sampling_problems,
    sharing_problems,
)
from nlp_mtl.task_types import kind_named
from nlp_mtl.transfer_checks import feature_problems, meta_problems, start_problems

HELD_OUT = 0.1
"""The share of train that a missing split takes, where the recipe does not say."""

BUFFER_SIZE = 10_000
"""Rows of a stream that are mixed together, where the recipe does not say."""

_SECRET = re.compile(
    r"://[^/?#\s]*@"  # a user of an address, with or without a password
    r"|[?&][^=&]*(?:token|key|secret|signature|password|credential|\bsig)[^=&]*="
    r"|\bhf_[A-Za-z0-9]{8,}",
    re.IGNORECASE,
)


def cross_problems(values: dict[str, Any]) -> Iterator[Problem]:
    """What only shows when keys are held against each other. Reads raw values, whatever they are."""
    for path, value in _texts(values):
        if _SECRET.search(value):
            yield Problem(
                path,
                "it holds what looks like a password or a token, which the run folder and the model card would tell; "
                "keep it in ~/.netrc, in HF_TOKEN or in the environment",
            )
    datasets, tasks = values.get("datasets"), values.get("tasks")
    datasets = datasets if isinstance(datasets, dict) else {}
    tasks = tasks if isinstance(tasks, dict) else {}
    used: set[str] = set()
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from _task_problems(f"tasks.{name}", task, datasets, used)
    # Whether a dataset is left over can only be said when all tasks say which they read.
    all_read = tasks and all(isinstance(t, dict) and t.get("dataset") for t in tasks.values()) and used <= set(datasets)
    distillation = values.get("distillation")
    beyond_labels = isinstance(distillation, dict) and distillation.get("rows") == "all"
    for name, dataset in datasets.items():
        if isinstance(dataset, dict):
            yield from _dataset_problems(f"datasets.{name}", dataset)
            yield from class_balance_problems(str(name), dataset, tasks)
        if all_read and name not in used and not beyond_labels:
            yield Problem(f"datasets.{name}", "no task learns from this dataset; remove it or give it to a task")
    yield from cleaning_problems(values.get("cleaning"), datasets, tasks)
    training = values.get("training")
    training = training if isinstance(training, dict) else {}
    sharing = values.get("sharing")
    sharing = sharing if isinstance(sharing, dict) else {}
    yield from sharing_problems(sharing, training)
    yield from start_problems(values, tasks)
    old_tasks, old_datasets = only_scored(values)
    learned = {name: task for name, task in tasks.items() if name not in old_tasks}
    drawn = {name: spec for name, spec in datasets.items() if name not in old_datasets}
    yield from feature_problems(training, sharing, drawn, values.get("extension"))
    yield from meta_problems(values, training, datasets, tasks)
    gradients, sampling, balancing = (
        section if isinstance(section := values.get(key), dict) else {}
        for key in ("gradients", "sampling", "balancing")
    )
    yield from balancing_problems(balancing, learned)
    yield from gradients_problems(gradients, training)
    yield from sampling_problems(sampling, training, datasets, tasks, learned)
    if steps_have_one_task(values):
        yield from alone_problems(balancing, gradients)
    consistency = values.get("consistency")
    yield from consistency_problems(consistency if isinstance(consistency, list) else [], tasks, datasets)
    yield from distillation_problems(values, tasks, datasets, drawn)
    extension = values.get("extension")
    if isinstance(extension, dict):
        yield from extension_problems(extension, training, values)
    compression = values.get("compression")
    yield from compression_problems(compression if isinstance(compression, dict) else {}, extension)
    hub = values.get("hub")
    if isinstance(hub, dict) and hub.get("push") == "every_save" and is_true(hub.get("create_pr")):
        yield Problem("hub.create_pr", "with `push: every_save` there would be a pull request for each; choose one")
    if training.get("frozen_layers") == "encoder" and training.get("unfreeze_every"):
        yield Problem("training.unfreeze_every", "`frozen_layers: encoder` leaves nothing to unfreeze; choose one")
    if is_true(training.get("compile")) and training.get("layout") == "packed":
        yield Problem(
            "training.compile",
            "what is compiled reads padded texts, and `layout: packed` pads none; choose one, or `layout: auto`",
        )
    weights = training.get("selection_weights")
    for name in weights if isinstance(weights, dict) else ():
        if name not in tasks:
            yield Problem(
                f"training.selection_weights.{name}",
                f"there is no such task; there are {listed(tasks)}.{did_you_mean(str(name), map(str, tasks))}",
            )
    if isinstance(weights, dict) and weights and all(number(weight) == 0 for weight in weights.values()):
        yield Problem("training.selection_weights", "all weights are 0, so no model is better than another")
    if tasks and all(isinstance(t, dict) and number(t.get("loss_weight", 1)) == 0 for t in tasks.values()):
        yield Problem("tasks", "every loss_weight is 0, so there is nothing to learn")


def _task_problems(path: str, task: dict[str, Any], datasets: dict[str, Any], used: set[str]) -> Iterator[Problem]:
    names = task.get("dataset")
    if names == []:
        yield Problem(f"{path}.dataset", "names no dataset")
    names = names if isinstance(names, list) else [names]
    names = [name for name in names if isinstance(name, str)]
    used.update(names)
    given = task.get("type")
    kind = kind_named(given)
    for name in names:
        spec = datasets.get(name)
        if datasets and name not in datasets:
            yield Problem(
                f"{path}.dataset",
                f"there is no dataset `{name}`; there are {listed(datasets)}.{did_you_mean(name, map(str, datasets))}",
            )
        elif (
            kind is not None
            and kind.reads_words
            and isinstance(spec, dict)
            and spec.get("text")
            and not spec.get("tokens")
        ):
            found, way_out = "`text`", "; give its `tokens` column"
            if spec.get("text_pair"):
                found, way_out = "pairs of texts, whose words have no labels", ""
            yield Problem(f"{path}.dataset", f"a {given} task needs words, but dataset `{name}` gives {found}{way_out}")
    specs = [spec for name in names if isinstance(spec := datasets.get(name), dict)]
    if len({bool(spec.get("text_pair")) for spec in specs}) > 1:
        yield Problem(f"{path}.dataset", "some of its datasets hold pairs of texts (`text_pair`) and some do not")
    if len(names) != len(set(names)):
        yield Problem(f"{path}.dataset", "a dataset stands twice")
    if names and isinstance(task.get("labels"), dict) and set(task["labels"]) != set(names):
        yield Problem(
            f"{path}.labels",
            f"names columns for {listed(task['labels'])}, but the task's datasets are {listed(names)}",
        )
    if task.get("init_from_revision") is not None and task.get("init_from") is None:
        yield Problem(f"{path}.init_from_revision", "there is no `init_from` that it could be a revision of")
    metric = task.get("metric")
    if kind is not None and metric is not None and metric not in kind.metrics:
        near = did_you_mean(str(metric), kind.metrics)
        yield Problem(f"{path}.metric", f"found {metric!r}, allowed for {given}: {listed(kind.metrics)}.{near}")
    if kind is not None and kind.label_set == "none":
        for key in ("label_names", "label_map"):
            if task.get(key):
                yield Problem(f"{path}.{key}", f"a {given} task has numbers, no labels: leave it out")
    if kind is not None and task.get("decoder") in ("iob2", "crf") and not kind.reads_words:
        yield Problem(
            f"{path}.decoder", f"a {given} task has no words whose labels could follow each other: leave it out"
        )
    yield from _loss_problems(path, task, given)
    label_names = task.get("label_names")
    if isinstance(label_names, list):
        if len(label_names) != len(set(map(str, label_names))):
            yield Problem(f"{path}.label_names", "a label stands twice")
        if len(label_names) < 2 and not (kind is not None and kind.label_set == "many"):
            yield Problem(f"{path}.label_names", "a task needs at least two labels")


def _loss_problems(path: str, task: dict[str, Any], type: Any) -> Iterator[Problem]:
    """Changes of a loss that do not go with the task, or with each other."""
    kind = kind_named(type)
    given = {
        "class_weights": bool(task.get("class_weights")),
        **{key: number(task.get(key, 0)) > 0 for key in ("focal_gamma", "label_smoothing")},
    }
    for key in [key for key, is_given in given.items() if is_given]:
        if kind is not None and kind.label_set == "none":
            yield Problem(f"{path}.{key}", f"a {type} task has numbers, no labels: leave it out")
        elif task.get("decoder") == "crf":
            yield Problem(
                f"{path}.{key}", "`decoder: crf` learns whole sequences, not labels by themselves; choose one"
            )
    if given["focal_gamma"] and given["label_smoothing"]:
        yield Problem(f"{path}.label_smoothing", "`focal_gamma` asks for the sure ones to count little; choose one")


def _dataset_problems(path: str, dataset: dict[str, Any]) -> Iterator[Problem]:
    if not dataset.get("path") and not dataset.get("data_files"):
        yield Problem(path, "says neither `path` (a Hub id, a folder or a format) nor `data_files`")
    if bool(dataset.get("text")) == bool(dataset.get("tokens")):
        yield Problem(path, "give one of `text` (a column of texts) and `tokens` (a column of word lists)")
    if dataset.get("text_pair") and not dataset.get("text"):
        yield Problem(f"{path}.text_pair", "it is the second text of a pair, and the first one is missing: give `text`")
    if dataset.get("text_pair") and dataset.get("text_pair") == dataset.get("text"):
        yield Problem(f"{path}.text_pair", "it is the same column as `text`")
    if dataset.get("path") == "conll" and not dataset.get("columns"):
        yield Problem(path, "a CoNLL file needs `columns`, for example [tokens, pos, chunk, ner]")
    fractions = [number(dataset.get(f"{split}_fraction", HELD_OUT)) for split in ("validation", "test")]
    if is_true(dataset.get("streaming")):
        for split in ("validation", "test"):
            # The default is nothing that anybody asked for; the log tells that it is not held out.
            if number(dataset.get(f"{split}_fraction", 0)) not in (0, HELD_OUT):
                yield Problem(
                    f"{path}.{split}_fraction", "nothing can be held out of a stream; give a split of its own"
                )
        if dataset.get("stratify") is not None:
            yield Problem(f"{path}.stratify", "nothing can be held out of a stream; leave it out")
    elif number(dataset.get("buffer_size", BUFFER_SIZE)) != BUFFER_SIZE:
        yield Problem(f"{path}.buffer_size", "only `streaming: true` reads it")
    if all(0 <= fraction < 1 for fraction in fractions) and sum(fractions) >= 1:
        yield Problem(path, "validation_fraction and test_fraction together leave nothing to train on")


def _texts(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """The texts in a recipe, with their paths; of a list that of the list. What holds itself ends somewhere, too."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict) and depth < 8:
        for key, one in value.items():
            yield from _texts(one, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and depth < 8:
        for one in value:
            yield from _texts(one, path, depth + 1)
