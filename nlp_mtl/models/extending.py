"""A trained model with more tasks: what it has stays what it was, and what is new starts as it would in a new model."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nlp_mtl.errors import ModelError, listed
from nlp_mtl.models.adapters import key
from nlp_mtl.models.encoder import set_dropout
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task

Weights = dict[str, Tensor]


def extended(
    base: MultiTaskModel,
    tasks: Sequence[Task],
    *,
    consistency: Sequence[Mapping[str, Any]] = (),
    dropout: float | None = None,
) -> MultiTaskModel:
    """A copy of a trained model that has more tasks; what is new is initialized from torch's global seed.

    All that the old tasks' answers follow from is the base's. A new task's copy of the encoder's last layers
    (``sharing: towers``) starts as the mean of the old tasks' copies, which all started alike.

    Args:
        tasks: all of them, those of the base first.
        consistency: tasks whose labels are chosen together, as the configuration has them.
        dropout: the rate of every dropout while it is trained; None: as the base's configuration says.

    Raises:
        ModelError: with its ``sharing``, a task more would change the answers of the others.
    """
    old_names = base.task_names
    new_names = [task.name for task in tasks if task.name not in old_names]
    _check_sharing(base.config.sharing or {"strategy": "hard"}, new_names)
    config = copy.deepcopy(base.config)
    config.tasks = [task.to_dict() for task in tasks]
    config.consistency = [dict(one) for one in consistency] or None
    if dropout is not None:
        set_dropout(config.encoder_config, dropout)
    model = MultiTaskModel(config)
    own, old = model.state_dict(), base.state_dict()
    unfit = [name for name, tensor in old.items() if name not in own or own[name].shape != tensor.shape]
    if unfit:  # what is left out would change old answers
        raise ModelError(f"the model cannot be extended: with more tasks it has no place for its {listed(unfit)}")
    started = _mean_towers([name for name in own if name not in old], old, old_names, new_names)
    model.load_state_dict({**own, **old, **started})
    return model


def _check_sharing(sharing: Mapping[str, Any], new_names: Sequence[str]) -> None:
    strategy, what = sharing["strategy"], ""
    if strategy == "towers" and sharing["cross_stitch"]:
        what = "`sharing: towers` with `cross_stitch` mixes the states of all tasks"
    elif strategy == "ple" and sharing["num_levels"] > 1:
        what = "`sharing: ple` of several levels mixes the experts of all tasks"
    if what and new_names:
        raise ModelError(
            f"the model cannot get the task {listed(new_names)}: {what}, so old answers would not stay. Train all "
            "tasks anew, or extend a model with another `sharing`"
        )


def _mean_towers(missing: Sequence[str], old: Weights, old_names: Sequence[str], new_names: Sequence[str]) -> Weights:
    """The weights that new tasks' copies of layers start with."""
    found = {}
    for name in missing:
        for task in new_names:
            before, copied, after = name.partition(f".copies.{key(task)}.")
            if copied:
                towers = [old[f"{before}.copies.{key(other)}.{after}"] for other in old_names]
                found[name] = torch.stack(towers).mean(0)
    return found
