"""Heads: the layers of the stock transformers classes, without their encoder.

A task's head *is* the stock ``AutoModelFor...Classification`` model of the encoder's family, whose base model was
replaced by a stub that hands on what it is given. So every family has its own head (dropouts, poolers,
activations) with no family code here, and a task can be exported as a stock checkpoint with the same logits.
"""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nlp_mtl.errors import ModelError
from nlp_mtl.task_types import KINDS
from nlp_mtl.task_types.kind import ProblemType
from nlp_mtl.tasks import TaskType

_AUTO_CLASSES = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
}


Module = TypeVar("Module", bound=nn.Module)


def auto_class(type: TaskType) -> Any:
    """The class of transformers that a task's stock models come from."""
    return _AUTO_CLASSES[KINDS[type].stock]


class EncoderStub(nn.Module):
    """Stands where the stock model has its encoder, and returns the encoder output that it is given."""

    def forward(self, input_ids: BaseModelOutputWithPooling, **_: object) -> BaseModelOutputWithPooling:
        """What it is given: the stock model passes its first argument on as ``input_ids``."""
        return input_ids


def head_config(
    encoder_config: PretrainedConfig, labels: Sequence[str], problem_type: ProblemType | None = None
) -> PretrainedConfig:
    """The configuration of a stock model with these labels.

    Args:
        problem_type: what ``pipeline()`` makes of logits by; that of the checkpoint that the encoder came from is none
            of the task's.
    """
    config = copy.deepcopy(encoder_config)
    config.problem_type = problem_type
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: place for place, label in enumerate(labels)}
    return config


def stock_model(type: TaskType, encoder_config: PretrainedConfig, labels: Sequence[str]) -> PreTrainedModel:
    """The stock model of a task, encoder and all, on the meta device: its shape without its weights.

    Raises:
        ModelError: the encoder's family has no such class.
    """
    if encoder_config.__class__ not in auto_class(type)._model_mapping:
        raise _unfit(encoder_config, f"for which transformers has no {type} model")
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(type).from_config(
            head_config(encoder_config, labels, KINDS[type].problem_type), dtype=torch.get_default_dtype()
        )
    return model


def build_head(type: TaskType, encoder_config: PretrainedConfig, labels: Sequence[str]) -> PreTrainedModel:
    """A head: call it as ``head(encoder_output, attention_mask=mask)``, read ``.logits``.

    Its weights are not initialized; the model around it does that.
    """
    head = stock_model(type, encoder_config, labels)
    setattr(head, head.base_model_prefix, EncoderStub())
    return from_meta(head)


def from_meta(module: Module) -> Module:
    """A module of the meta device with memory for its weights, which are yet to be initialized."""
    device = torch.get_default_device()
    if device.type != "meta":
        module.to_empty(device=device)
    parts: list[Any] = [*module.modules(), *module.parameters()]
    for part in parts:
        part._is_hf_initialized = False  # what was done on the meta device does not count
    return module


def stock_pooler(type: TaskType, encoder_config: PretrainedConfig) -> nn.Module | None:
    """The pooler that the stock model's encoder has, on the meta device; None where it is built without one."""
    pooler = getattr(stock_model(type, encoder_config, ["a", "b"]).base_model, "pooler", None)
    return pooler if isinstance(pooler, nn.Module) else None


def fit_pooler(encoder: PreTrainedModel, stock: nn.Module | None, *, is_read: bool) -> None:
    """Give the encoder the pooler that heads read, and leave it no parameters that would never get a gradient."""
    found = getattr(encoder, "pooler", None)
    if is_read and found is None and stock is not None:  # NomicBERT's encoder alone is built without
        encoder.pooler = from_meta(stock)
    elif not is_read and found is not None:
        if stock is None:
            encoder.register_module("pooler", None)
        else:  # the family's stock models keep a pooler that they do not read, and the encoder may count on it
            found.requires_grad_(False)


def reads_pooler(type: TaskType, encoder_config: PretrainedConfig) -> bool:
    """Whether the stock model's head reads the encoder's pooled output (BERT and ALBERT do): it is run to see.

    Raises:
        ModelError: the head needs more than the encoder's output, or another encoder than ``AutoModel`` gives.
    """
    model = stock_model(type, encoder_config, ["a", "b"])
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        encoder = AutoModel.from_config(copy.deepcopy(encoder_config))
        if model.base_model.__class__ is not encoder.__class__ or encoder_config.is_encoder_decoder:
            raise _unfit(encoder_config, f"whose {type} model reads its texts with another encoder, or a decoder")
        setattr(model, model.base_model_prefix, EncoderStub())
        try:
            pooled = torch.zeros(2, encoder_config.hidden_size, requires_grad=True)
            output = BaseModelOutputWithPooling(torch.zeros(2, 3, encoder_config.hidden_size), pooled)
            logits = model.eval()(output, attention_mask=torch.ones(2, 3, dtype=torch.long)).logits
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            why = f"whose {type} head needs more than hidden states (a decoder's looks for the last token)"
            raise _unfit(encoder_config, why) from error
        return torch.autograd.grad(logits.sum(), pooled, allow_unused=True)[0] is not None


def reads_first_token_only(type: TaskType, encoder_config: PretrainedConfig) -> bool:
    """Whether the stock model's head looks at no token of a text but the first: its gradient tells."""
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        head = build_head(type, encoder_config, ["a", "b"]).eval()
        generator = torch.Generator().manual_seed(0)  # the global one is for first weights
        for parameter in head.parameters():
            parameter.data.normal_(generator=generator)
        hidden = torch.randn(2, 3, encoder_config.hidden_size, generator=generator).requires_grad_()
        output = BaseModelOutputWithPooling(hidden, torch.zeros(2, encoder_config.hidden_size))
        logits = head(output, attention_mask=torch.ones(2, 3, dtype=torch.long)).logits
        # A head that reads the pooler alone gives its gradient to parameters only; stock poolers read the first token.
        gradient = torch.autograd.grad(logits.sum(), hidden, allow_unused=True)[0] if logits.requires_grad else None
    return gradient is None or not gradient[:, 1:].any()


def _unfit(encoder_config: PretrainedConfig, why: str) -> ModelError:
    return ModelError(
        f"the encoder is of the family `{encoder_config.model_type}`, {why}; "
        "take an encoder such as BERT, RoBERTa, DeBERTa, ModernBERT or XLM-RoBERTa"
    )


def rows_of(output: BaseModelOutputWithPooling, rows: Tensor) -> BaseModelOutputWithPooling:
    """The encoder output of some rows of a micro-batch. ``rows``: [r], may be none."""
    hidden = output.last_hidden_state  # [rows, tokens, hidden]
    assert hidden is not None
    pooled = output.get("pooler_output")  # [rows, hidden]
    layers = output.get("hidden_states")
    return BaseModelOutputWithPooling(
        last_hidden_state=hidden[rows],
        pooler_output=None if pooled is None else pooled[rows],
        hidden_states=None if layers is None else tuple(layer[rows] for layer in layers),
    )
