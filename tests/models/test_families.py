"""Every encoder family: the stock model's logits, every parameter learned, saved and loaded bit for bit."""

import logging
from pathlib import Path

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
TOPIC = Task("type", "text-classification", ("a", "b", "c", "d"), "accuracy")  # named like an attribute of modules
STOCK = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[3, 7:] = 0
    return ids.masked_fill(mask == 0, tiny.PAD), mask


def stock_of(model: MultiTaskModel, task: Task) -> PreTrainedModel:
    """The stock model of a task, with our model's weights."""
    stock = STOCK[task.type].from_config(model.head(task.name).config, dtype=model.dtype)
    weights = {f"{stock.base_model_prefix}.{name}": value for name, value in model.encoder.state_dict().items()}
    weights |= model.head(task.name).state_dict()
    wanted = stock.state_dict().keys()
    stock.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    return stock.eval()


@pytest.fixture(params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> MultiTaskModel:
    return from_encoder(tiny.encoder(request.param), [NER, TOPIC]).eval()


def test_one_pass_gives_the_logits_of_the_stock_models_bit_for_bit(model: MultiTaskModel) -> None:
    ids, mask = batch()
    with torch.no_grad():
        ours = model(ids, mask)
        for task in (NER, TOPIC):
            assert torch.equal(ours[task.name], stock_of(model, task)(ids, attention_mask=mask).logits)


def test_each_head_sees_only_its_rows(model: MultiTaskModel) -> None:
    ids, mask = batch()
    with torch.no_grad():
        whole = model(ids, mask)
        part = model(ids, mask, rows={"ner": torch.tensor([2, 0]), "type": torch.tensor([], dtype=torch.long)})
    assert torch.allclose(part["ner"], whole["ner"][[2, 0]], atol=1e-6)
    assert part["type"].shape == (0, 4)


def test_every_parameter_gets_a_gradient_also_from_heads_without_rows(model: MultiTaskModel) -> None:
    ids, mask = batch()
    none = torch.tensor([], dtype=torch.long)
    model.train()
    logits = model(ids, mask, rows={"ner": torch.tensor([0, 1]), "type": none})
    (logits["ner"].sum() + logits["type"].sum()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    unused = {id(parameter) for parameter in model.unused_parameters(["ner"])}
    for name, parameter in model.named_parameters():
        if id(parameter) in unused:
            assert parameter.grad is not None
            assert not parameter.grad.any(), name
        elif name.startswith("heads."):
            assert parameter.grad is not None
            assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_answers_bit_for_bit(
    model: MultiTaskModel, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids, mask = batch()
    model.to(dtype).save_pretrained(tmp_path)
    code = {f"{name}.py" for name in ("modeling_nlp_mtl", "sharing", "adapters", "attention_heads")}
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", *code}
    logging.getLogger("transformers").addHandler(caplog.handler)
    for loaded in (
        MultiTaskModel.from_pretrained(tmp_path, dtype=dtype),
        AutoModel.from_pretrained(tmp_path, dtype=dtype),
    ):
        assert isinstance(loaded, MultiTaskModel)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        with torch.no_grad():
            ours, theirs = model(ids, mask), loaded.eval()(ids, mask)
        assert all(torch.equal(ours[task], theirs[task]) for task in ours)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.task_list() == [NER, TOPIC]
    assert config.encoder_config.model_type == model.config.encoder_config.model_type


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_building_a_model_leaves_the_encoders_weights_and_config_alone(family: str) -> None:
    encoder = tiny.encoder(family)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = encoder.config.to_dict()
    model = from_encoder(encoder, [NER, TOPIC])
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.config.encoder_config.to_dict() == config
    for task in (NER, TOPIC):
        weights = [p for name, p in model.head(task.name).named_parameters() if name.endswith("weight") and p.ndim > 1]
        assert all(0 < float(weight.detach().std()) < 1 for weight in weights), "heads start from small random weights"
