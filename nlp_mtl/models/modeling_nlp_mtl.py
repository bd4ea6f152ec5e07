"""A multi-task model of nlp_mtl, without the nlp_mtl package: one encoder, read once, and a stock head for each task.

It goes with the weights to the Hub, for ``AutoModel.from_pretrained(..., trust_remote_code=True)``. It needs torch
and transformers alone. ``pip install nlp_mtl`` gives more: words, windows over long texts, spans with offsets.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .adapters import adapt
from .attention_heads import leave_heads
from .sharing import LayerMix, build_sharing


class MultiTaskConfig(PretrainedConfig):
    """``tasks`` is a list of ``{name, type, labels, ...}``; ``encoder_config`` the encoder's own configuration."""

    model_type = "nlp_mtl"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(AutoConfig, model_type="bert")}

    encoder_config: Any = None
    tasks: list[dict[str, Any]] | None = None
    word_splitter: str = "unicode"
    max_length: int = 512
    window_overlap: int = 64
    sharing: dict[str, Any] | None = None
    heads_per_layer: list[int] | None = None


class EncoderStub(nn.Module):
    """Stands where a stock model has its encoder, and returns the encoder output that it is given."""

    def forward(self, input_ids: Any, **_: object) -> Any:
        """What it is given: a stock model passes its first argument on."""
        return input_ids


class MultiTaskModel(PreTrainedModel):
    """``model(input_ids, attention_mask)`` gives ``{task: logits}``."""

    config_class = MultiTaskConfig
    config: MultiTaskConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiTaskConfig) -> None:
        super().__init__(config)
        encoder = AutoModel.from_config(copy.deepcopy(config.encoder_config))
        leave_heads(encoder, config.heads_per_layer)
        poolers, self.heads = [], nn.ModuleDict()
        for task in config.tasks or []:
            stock = _stock(config.encoder_config, task)
            poolers.append(getattr(stock.base_model, "pooler", None))
            setattr(stock, stock.base_model_prefix, EncoderStub())
            if task.get("decoder") == "crf":
                count = len(task["labels"])
                stock.register_parameter("transitions", nn.Parameter(torch.zeros(count + 2, count)))
            self.heads[f"{task['name']}_head"] = stock
        # As the stock models: the pooler that heads read, and none that they were built without.
        pooler = next((one for one in poolers if one is not None), None)
        if getattr(encoder, "pooler", None) is not None and pooler is None:
            encoder.register_module("pooler", None)
        elif hasattr(encoder, "pooler") and encoder.pooler is None and pooler is not None:
            encoder.pooler = pooler
        self.task_names = [task["name"] for task in config.tasks or []]
        self.sharing_settings = config.sharing or {"strategy": "hard"}
        self.sharing = build_sharing(self.sharing_settings, self.task_names, encoder)
        self.encoder = encoder
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        tasks: list[str] | None = None,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``{task: logits}``, [rows, tokens, labels] or [rows, labels], of ``tasks`` (default: all).

        Of a task with the decoder ``crf`` also ``{task/transitions: scores}``, [labels + 2, labels]: of the second
        label behind the first, then of a text's first label, then of its last. The best sequence of labels over words,
        by their first sub-words, has the highest sum of logits and transitions (Viterbi).

        ``token_type_ids`` tell which text of a pair a token belongs to, for tasks with ``pairs`` and encoders that have
        segments. As tokenizers give them for single texts they are all 0, which changes nothing.
        """
        reads_pairs = any(task.get("pairs") for task in self.config.tasks or [])
        if token_type_ids is not None and not reads_pairs and token_type_ids.any():
            raise ValueError("texts are read one by one, but token_type_ids tell of pairs")
        has_segments = (getattr(self.config.encoder_config, "type_vocab_size", None) or 0) > 1
        segments = {} if token_type_ids is None or not has_segments else {"token_type_ids": token_type_ids}
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        names = self.task_names if tasks is None else tasks
        if self.sharing_settings["strategy"] == "lora":
            outputs = adapt(self.encoder, input_ids, attention_mask, dict.fromkeys(names), **segments)
            return self._with_transitions(
                {
                    name: self.heads[f"{name}_head"](outputs[name], attention_mask=attention_mask).logits
                    for name in names
                }
            )
        output = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=isinstance(self.sharing, LayerMix),
            **segments,
        )
        return self._with_transitions(
            {
                name: self.heads[f"{name}_head"](self._of_task(name, output), attention_mask=attention_mask).logits
                for name in names
            }
        )

    def _with_transitions(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        chained = [task["name"] for task in self.config.tasks or [] if task.get("decoder") == "crf"]
        found = {name: self.heads[f"{name}_head"].get_parameter("transitions") for name in logits if name in chained}
        return {**logits, **{f"{name}/transitions": one.clone() for name, one in found.items()}}

    def _of_task(self, task: str, output: Any) -> Any:
        """What a task's head reads."""
        pooler: Any = getattr(self.encoder, "pooler", None)
        if self.sharing_settings["strategy"] == "towers":
            count, place = len(self.task_names), self.task_names.index(task)
            hidden = output.last_hidden_state.chunk(count)[place]
        elif self.sharing is not None:
            hidden = self.sharing(task, output.hidden_states or (output.last_hidden_state,))
        else:
            return output
        pooled = None
        if isinstance(pooler, nn.Linear):  # ALBERT's
            pooled = self.encoder.pooler_activation(pooler(hidden[:, 0]))
        elif pooler is not None:
            pooled = pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def _init_weights(self, module: nn.Module) -> None:
        if self.sharing is None or all(module is not part for part in self.sharing.modules()):
            super()._init_weights(module)

    def get_input_embeddings(self) -> Any:
        """The encoder's."""
        return self.encoder.get_input_embeddings()


def _stock(encoder_config: PretrainedConfig, task: dict[str, Any]) -> PreTrainedModel:
    config = copy.deepcopy(encoder_config)
    config.id2label = dict(enumerate(task["labels"]))
    config.label2id = {label: place for place, label in enumerate(task["labels"])}
    # Tasks of texts differ in what their logits mean: softmax for one label, sigmoid for several, a number as it is.
    of_words = task["type"] == "token-classification"
    auto: Any = AutoModelForTokenClassification if of_words else AutoModelForSequenceClassification
    model: PreTrainedModel = auto.from_config(config)
    return model
