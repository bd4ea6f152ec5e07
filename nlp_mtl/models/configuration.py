"""What a model's ``config.json`` says."""

from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from nlp_mtl.task_types.consistency import Consistency
from nlp_mtl.tasks import Task, task_from_dict


class MultiTaskConfig(PreTrainedConfig):
    """Configuration of a :class:`MultiTaskModel`, kept as ``config.json`` beside its weights."""

    model_type = "nlp_mtl"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="bert")}

    encoder_config: Any = None
    """The encoder's own configuration."""
    tasks: list[dict[str, Any]] | None = None
    """The tasks, as :meth:`nlp_mtl.tasks.Task.to_dict` writes them; order is the order of answers."""
    word_splitter: str = "unicode"
    """How texts become words; see :mod:`nlp_mtl.words`."""
    cleaning: dict[str, Any] | None = None
    """What is done to texts before words are found, as :meth:`nlp_mtl.cleaning.cleaning.Cleaning.to_dict` writes it."""
    max_length: int = 512
    """Tokens in a window, special tokens counted."""
    window_overlap: int = 64
    """Tokens that neighbouring windows of a long text share."""
    sharing: dict[str, Any] | None = None
    """What lies between encoder and heads: ``strategy`` and what it reads, as in a recipe; None: nothing."""
    encoder_origin: list[dict[str, Any]] | None = None
    """Where the encoder came from before it was trained for these tasks, as
    :func:`nlp_mtl.models.trained_encoder.origin_of` has it; None: nobody said."""

    meta_learned: dict[str, Any] | None = None
    """Of an encoder alone, without tasks: the ``algorithm`` by which it was made, and the ``tasks`` of its episodes,
    as types by their names."""
    heads_per_layer: list[int] | None = None
    """Attention heads of each layer, from the lowest, where some were taken out; None: as the encoder's configuration
    says."""
    keep_zeros: bool = False
    """Whether weights of the encoder's layers that are 0 were pruned, and stay 0 in training."""

    consistency: list[dict[str, Any]] | None = None
    """Pairs of tasks whose labels are chosen together: ``tasks`` (two names), ``table`` (a number for each label of the
    first and of the second), its ``weight``, and ``forbidden``, places in it that are never chosen."""

    def task_list(self) -> list[Task]:
        """The tasks."""
        return [task_from_dict(values) for values in self.tasks or []]

    def pairs(self) -> list[Consistency]:
        """Tasks whose labels are chosen together."""
        known = {task.name: task for task in self.task_list()}
        found = []
        for values in self.consistency or []:
            first, second = (known[name] for name in values["tasks"])
            table = np.array(values["table"], dtype=np.float64).reshape(len(first.labels), len(second.labels))
            table = table * values["weight"]
            for one, other in values["forbidden"]:
                table[one, other] = -np.inf
            found.append(Consistency(first, second, table))
        return found


AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig)
