"""The encoder of a model of ours, from which another run starts (intermediate training).

(Phang et al. 2018, "Sentence encoders on STILTs", arXiv 1811.01088: train on a task with many rows, then on the one
that matters.)
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from nlp_mtl.errors import ModelError, listed
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.multitask import MultiTaskModel

ENCODER_KEYS = {r"^encoder\.": ""}
"""From the names of our models' weights to those of the encoder alone."""


def model_folder(name: str) -> str:
    """Where the model of a run folder lies; all else as it is.

    Raises:
        ModelError: the run has no model yet.
    """
    folder = Path(name)
    # A copy of a repository has a recipe as well, but its model lies beside it; what was compressed may have none.
    holds_model = (folder / "recipe.yaml").is_file() or (folder / "model" / "config.json").is_file()
    if not holds_model or (folder / "config.json").is_file():
        return name
    if not (folder / "model").is_dir():
        raise ModelError(f"the run folder {name} has no model yet; its training has not finished (see --resume)")
    return str(folder / "model")


def stock_config(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """The configuration of the encoder that a model of ours was trained with; that of a stock model is its own.

    Raises:
        ModelError: each of its tasks has an encoder of its own, or heads were taken out.
    """
    if not isinstance(config, MultiTaskConfig):
        return config
    sharing = config.sharing or {"strategy": "hard"}
    if sharing["strategy"] in ("towers", "lora"):
        way_out = f"write that of a task, `nlp-mtl export {name} FOLDER --task TASK`, and give that folder"
        if sharing.get("cross_stitch") and sharing["strategy"] == "towers":
            way_out = "no stock encoder has a place for them; train it with another `sharing`"
        what = "layers" if sharing["strategy"] == "towers" else "adapters"
        raise ModelError(
            f"encoder `{name}`: each of its tasks has {what} of its own (sharing: {sharing['strategy']}), so it has "
            f"not one encoder: {way_out}"
        )
    if config.heads_per_layer is not None:
        raise ModelError(
            f"encoder `{name}`: attention heads were taken out of it, and no stock encoder has a place for that: write "
            f"it with heads of zeros in their places, `nlp-mtl export {name} FOLDER --task TASK`, and give that "
            "folder; or train it on with its tasks (compression.model)"
        )
    encoder_config: PreTrainedConfig = config.encoder_config
    return encoder_config


def check_missing(name: str, missing: list[str]) -> None:
    """Refuse weights of one of our models that lack some of the encoder; a pooler it may have had no use for.

    Raises:
        ModelError: they do.
    """
    if lacking := sorted(key for key in missing if not key.startswith("pooler.")):
        raise ModelError(f"encoder `{name}` cannot be loaded: its weights lack {listed(lacking)}")


def origin_of(name: str, config: PreTrainedConfig, *, from_hub: bool) -> list[dict[str, Any]]:
    """Where an encoder comes from, oldest first: the stock one, then what it learned, run by run.

    Args:
        name: as a recipe has it. Of a folder only the last part is told, since models are given to others.
        config: the stock model's, or that of one of our models.

    Returns:
        ``{"name": ..., "from_hub": ...}`` of a stock encoder, with ``{"tasks": {task: type}}`` of a run of ours, and
        the ``algorithm`` of a meta run.
    """
    shown = name if from_hub or name.startswith("package:") else Path(name).absolute().name
    last: dict[str, Any] = {"name": shown, "from_hub": from_hub}
    if not isinstance(config, MultiTaskConfig):
        return [last]
    learned = config.meta_learned or {"tasks": {task["name"]: task["type"] for task in config.tasks or []}}
    return [*(config.encoder_origin or []), {**last, **learned}]


def without_heads(model: MultiTaskModel, algorithm: str) -> MultiTaskModel:
    """A model as a meta run leaves it: its heads have learned nothing, and go."""
    tasks = {task.name: task.type for task in model.config.task_list()}
    model.config.meta_learned, model.config.tasks = {"algorithm": algorithm, "tasks": tasks}, []
    model.heads = nn.ModuleDict()
    return model
