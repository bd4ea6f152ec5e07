"""What a model's ``config.json`` says."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

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
    max_length: int = 512
    """Tokens in a window, special tokens counted."""
    window_overlap: int = 64
    """Tokens that neighbouring windows of a long text share."""
    sharing: dict[str, Any] | None = None
    """What lies between encoder and heads: ``strategy`` and what it reads, as in a recipe; None: nothing."""

    def task_list(self) -> list[Task]:
        """The tasks."""
        return [task_from_dict(values) for values in self.tasks or []]


AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig)
