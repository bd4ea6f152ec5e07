"""Which encoders can have heads, and what heads read."""

import pytest
import tiny
import torch
from transformers import AutoModel, BertConfig, GPT2Config, T5Config

from nlp_mtl import ModelError
from nlp_mtl.models.heads import reads_first_token_only, reads_pooler
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.tasks import Task

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
POS = Task("pos", "token-classification", ("NOUN", "VERB"), "accuracy")
TOPIC = Task("topic", "text-classification", ("a", "b", "c"), "accuracy")
MOOD = Task("mood", "text-classification", ("good", "bad"), "accuracy")


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2),
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    ],
    ids=["a decoder", "an encoder and a decoder"],
)
def test_what_is_no_encoder_is_refused_by_name(config) -> None:
    model = AutoModel.from_config(config)
    with pytest.raises(ModelError, match=rf"family `{config.model_type}`.*such as BERT, RoBERTa"):
        from_encoder(model, [NER, TOPIC])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_text_heads_read_the_pooler_in_bert_and_albert_only_and_token_heads_never(family: str) -> None:
    config = tiny.encoder_config(family)
    assert reads_pooler("text-classification", config) == (family in ("bert", "albert"))
    assert not reads_pooler("token-classification", config)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tasks", [[NER], [NER, TOPIC]], ids=["token", "both"])
def test_a_model_learns_every_parameter_that_it_says_it_learns(family: str, tasks: list[Task]) -> None:
    model = from_encoder(tiny.encoder(family), tasks)
    ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    sum(logits.square().sum() for logits in model(ids).values()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_unused_parameters_are_those_of_idle_heads_of_an_unread_pooler_and_without_any_task_all() -> None:
    model = from_encoder(tiny.encoder("bert"), [NER, POS, TOPIC, MOOD])
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def unused(*active: str) -> set[str]:
        return {names[id(parameter)].split(".")[1] for parameter in model.unused_parameters(active)}

    assert unused("ner", "pos", "topic", "mood") == set()
    assert unused("ner", "topic") == {"pos_head", "mood_head"}
    assert unused("ner") == {"pos_head", "topic_head", "mood_head", "pooler"}
    assert unused() == {"ner_head", "pos_head", "topic_head", "mood_head", "pooler", "embeddings", "encoder"}


@pytest.mark.parametrize("name", ["forward", "type", "heads", "encoder", "config", "ner-2", "keys"])
def test_a_task_may_have_any_name(name: str) -> None:
    task = Task(name, "text-classification", ("a", "b"), "accuracy")
    model = from_encoder(tiny.encoder(), [NER, task])
    assert model(torch.full((2, 4), 7))[name].shape == (2, 2)


def test_the_pooler_starts_as_the_encoder_had_it() -> None:
    encoder = tiny.encoder("bert")
    weights = encoder.pooler.dense.weight.clone()
    assert torch.equal(from_encoder(encoder, [TOPIC]).encoder.pooler.dense.weight, weights)


def test_a_dropout_of_the_configuration_is_that_of_the_head() -> None:
    config = tiny.encoder_config("bert", dropout=0.3)
    assert isinstance(config, BertConfig)
    model = from_encoder(AutoModel.from_config(config), [NER, TOPIC])
    assert {m.p for m in model.heads.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stock_text_heads_look_at_the_first_token_unless_they_take_a_mean(family: str) -> None:
    config = tiny.encoder_config(family)
    before = torch.get_rng_state()
    assert reads_first_token_only("text-classification", config)
    assert not reads_first_token_only("token-classification", config)
    assert torch.equal(torch.get_rng_state(), before)
    if family == "modernbert":
        config.classifier_pooling = "mean"
        assert not reads_first_token_only("text-classification", config)
