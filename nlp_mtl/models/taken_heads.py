"""Heads that start from a stock fine-tuned checkpoint, so that an existing model of one task can start several."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nlp_mtl.errors import ModelError, listed
from nlp_mtl.models.encoder import load_encoder_config, resolve_encoder, trained_config
from nlp_mtl.models.fetching import UNREADABLE, cannot_load, check_shards, weights_from
from nlp_mtl.models.heads import auto_class, stock_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task


def take_head(
    model: MultiTaskModel,
    task: Task,
    init_from: str,
    revision: str | None = None,
    label_map: Mapping[str, str] | None = None,
) -> None:
    """Give a task's head the weights of a checkpoint of the stock class, label by label.

    The encoder stays as it is: it is the recipe's ``encoder``, mostly the same checkpoint.

    Args:
        init_from: a folder, or a Hub id.
        label_map: other names for the checkpoint's labels.

    Raises:
        ModelError: it cannot be loaded, is of another family or width, has no such head, or lacks a label.
    """
    try:
        if trained_config(init_from, revision) is not None:
            raise ModelError(
                f"`{init_from}` is a multi-task model: write one of its tasks as a stock checkpoint, `nlp-mtl export "
                f"{init_from} FOLDER --task TASK`, and give that folder"
            )
        config: Any = load_encoder_config(init_from, revision)
    except ModelError as error:
        why = str(error).removeprefix("encoder ")
        raise ModelError(f"task `{task.name}`: init_from: {why}") from error
    ours: Any = model.config.encoder_config
    for key in ("model_type", "hidden_size"):
        if getattr(config, key, None) != getattr(ours, key, None):
            raise _unfit(
                task, init_from, f"its {key} is {getattr(config, key, None)}, the encoder's {getattr(ours, key)}"
            )
    theirs = [(label_map or {}).get(label, label) for _, label in sorted(config.id2label.items())]
    kind, problem_type = kind_of(task), getattr(config, "problem_type", None)
    if problem_type and kind.problem_type and problem_type != kind.problem_type:
        raise _unfit(
            task, init_from, f"its problem_type is {problem_type}, and that of a {task.type} head {kind.problem_type}"
        )
    if kind.label_set == "none":  # the one output may be called anything
        if len(theirs) != 1:
            raise _unfit(task, init_from, f"it has {len(theirs)} outputs, and a {task.type} head one")
        theirs = list(task.labels)
    lacking = [label for label in task.labels if label not in theirs]
    if lacking:
        raise _unfit(
            task,
            init_from,
            f"it lacks the labels {listed(lacking)}; it has {listed(theirs)} (`label_map` renames them)",
        )
    wanted = type(stock_model(task.type, ours, task.labels)).__name__
    if wanted not in (config.architectures or [wanted]):  # other heads may have layers of the same names
        raise _unfit(
            task, init_from, f"it is a {listed(config.architectures)}, and a {task.type} head is a `{wanted}`'s"
        )
    try:
        path = resolve_encoder(init_from)
        check_shards(path, config, revision)
        loaded, told = weights_from(
            lambda: auto_class(task.type).from_pretrained(
                path, revision=revision, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
        )
    except UNREADABLE as error:
        raise cannot_load(f"init_from of task `{task.name}`:", init_from, error) from error
    head = model.head(task.name)
    missing = [name for name in told["missing_keys"] if name in head.state_dict()]
    if missing:
        raise _unfit(task, init_from, f"it has no {task.type} head (no {listed(missing)})")
    places = torch.tensor([theirs.index(label) for label in task.labels])
    by_label = _by_label(task, ours)
    found: dict[str, Tensor] = loaded.state_dict()
    own: dict[str, Tensor] = head.state_dict()  # a stock checkpoint has no transitions between labels
    taken = {name: found[name][places] if name in by_label else found[name] for name in own if name in found}
    head.load_state_dict({**own, **taken})


def _by_label(task: Task, encoder_config: Any) -> set[str]:
    """The weights that have a row for each label: those whose shape depends on how many there are."""
    few, more = (
        stock_model(task.type, encoder_config, [str(n) for n in range(count)]).state_dict() for count in (2, 3)
    )
    return {name for name, tensor in few.items() if tensor.shape != more[name].shape}


def _unfit(task: Task, init_from: str, why: str) -> ModelError:
    return ModelError(f"task `{task.name}`: init_from: `{init_from}` does not fit: {why}")
