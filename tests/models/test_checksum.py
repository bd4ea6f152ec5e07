"""Checksums: of weights, and of all that answers follow from."""

import copy

import pytest
import torch
from tiny import encoder, tokenizer
from two_tasks import TASKS

from nlp_mtl.models.checksum import answers_checksum, weights_checksum
from nlp_mtl.models.multitask import from_encoder


def test_one_weight_that_moves_changes_both() -> None:
    base = from_encoder(encoder(), TASKS)
    same = copy.deepcopy(base)
    assert weights_checksum(base) == weights_checksum(same)
    assert answers_checksum(base, tokenizer()) == answers_checksum(same, tokenizer())
    with torch.no_grad():
        same.head(TASKS[0].name).classifier.bias[0] += 1e-6
    assert weights_checksum(base) != weights_checksum(same)
    assert answers_checksum(base, tokenizer()) != answers_checksum(same, tokenizer())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cleaning", {"lowercase": True}),
        ("max_length", 32),
        ("sharing", {"strategy": "lora", "alpha": 2.0}),
        ("heads_per_layer", [1, 3]),
    ],
)
def test_settings_that_change_answers_change_the_checksum_of_answers_alone(key: str, value: object) -> None:
    model = from_encoder(encoder(), TASKS)
    other = copy.deepcopy(model)
    setattr(other.config, key, value)
    assert answers_checksum(model, tokenizer()) != answers_checksum(other, tokenizer())
    assert weights_checksum(model) == weights_checksum(other)


def test_where_a_model_lies_and_what_its_tokenizer_did_last_change_nothing() -> None:
    model, words, used = from_encoder(encoder(), TASKS), tokenizer(), tokenizer()
    before = answers_checksum(model, words)
    model.config.encoder_config._name_or_path = "elsewhere"
    used(["a b", "a"], padding=True, truncation=True, max_length=3)
    assert answers_checksum(model, words) == answers_checksum(model, used) == before
