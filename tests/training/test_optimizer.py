import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, encoder

from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task
from nlp_mtl.training.optimizer import parameter_groups, schedule_factor, set_learning_rates

TASKS = [
    Task("ner", "token-classification", ("O", "B-X", "I-X"), "span_f1"),
    Task("sentiment", "text-classification", ("bad", "good"), "accuracy"),
]
RATES = {"learning_rate": 1e-4, "head_learning_rate": 1e-2, "weight_decay": 0.1}


def tiny_model(family: str = "bert") -> MultiTaskModel:
    return from_encoder(encoder(family), TASKS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_group(family: str) -> None:
    model = tiny_model(family)
    groups = parameter_groups(model, **RATES)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    by_name = dict(model.named_parameters())
    for group in groups:
        assert [id(by_name[name]) for name in group["parameter_names"]] == [id(p) for p in group["params"]]
    torch.optim.AdamW(groups)  # which refuses a parameter that comes twice


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_is_what_decays_in_the_stock_trainer(family: str) -> None:
    model = tiny_model(family)
    decaying = {
        name for g in parameter_groups(model, **RATES) if g["weight_decay"] == 0.1 for name in g["parameter_names"]
    }
    stock = set(transformers.Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    # The stock rule goes by names, and takes MPNet's table of relative positions for a bias.
    assert {name for name in decaying ^ stock if "relative_attention_bias" not in name} == set()


def test_heads_and_the_pooler_that_only_they_read_have_their_own_learning_rate() -> None:
    for group in parameter_groups(tiny_model(), **RATES):
        for name in group["parameter_names"]:
            assert group["lr"] == group["peak_lr"] == (1e-2 if name.startswith(("heads.", "encoder.pooler.")) else 1e-4)
        assert group["name"].startswith("heads" if group["lr"] == 1e-2 else "encoder")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_learns_slower_than_the_one_above_by_the_layer_decay(family: str) -> None:
    model = tiny_model(family)
    rates = {}
    for group in parameter_groups(model, **RATES, layer_decay=0.5):
        assert group["lr"] == group["peak_lr"]
        rates |= dict.fromkeys(group["parameter_names"], group["lr"])
    shares = family == "albert"  # its layers are one layer
    for name, rate in rates.items():
        if name.startswith(("heads.", "encoder.pooler.")):
            expected = 1e-2
        elif name.startswith("encoder.embeddings.") or "relative" in name or "rel_embeddings" in name:
            expected = 0.5e-4 if shares else 0.25e-4
        elif re.search(r"layers?\.0\.", name) and not shares:
            expected = 0.5e-4
        elif "embedding" in name:  # a projection from the embeddings' width
            expected = 0.5e-4 if shares else 0.25e-4
        else:
            expected = 1e-4
        assert rate == pytest.approx(expected), name
    assert len(rates) == len(dict(model.named_parameters()))
    names = [group["name"] for group in parameter_groups(model, **RATES, layer_decay=0.5)]
    assert len(names) == len(set(names))
    assert names[0] == "embeddings"


def test_frozen_parameters_are_in_no_group_and_no_group_is_empty() -> None:
    model = tiny_model()
    model.encoder.requires_grad_(False)
    groups = parameter_groups(model, **RATES)
    assert [group["name"] for group in groups] == ["heads", "heads, no decay"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.heads.parameters()))


runs = {
    "num_steps": st.integers(1, 300),
    "schedule": st.sampled_from(["linear", "cosine", "constant"]),
    "warmup_fraction": st.floats(0, 0.999),
}


@settings(deadline=None, max_examples=150)
@given(**runs)
def test_a_schedule_rises_then_falls_and_every_step_learns(num_steps, schedule, warmup_fraction) -> None:
    factors = [schedule_factor(step, num_steps, schedule, warmup_fraction) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if warmup_fraction <= (num_steps - 1) / num_steps - 1e-9:  # some step lies behind the warm-up
        assert factors[peak] == 1
    if schedule == "constant":
        assert set(factors[peak:]) == {factors[peak]}


@settings(deadline=None, max_examples=50)
@given(num_steps=st.integers(1, 60), warmup=st.floats(0, 0.9), schedule=st.sampled_from(["linear", "cosine"]))
def test_a_schedule_is_the_stock_one_without_its_two_steps_of_zero(num_steps, warmup, schedule) -> None:
    make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    warmup_steps = sum(step < num_steps * warmup for step in range(num_steps))
    stock = make(optimizer, num_warmup_steps=warmup_steps + 1, num_training_steps=num_steps + 1)
    for step in range(num_steps):
        optimizer.step()
        stock.step()
        assert schedule_factor(step, num_steps, schedule, warmup) == pytest.approx(stock.get_last_lr()[0])


def test_learning_rates_are_the_peaks_times_the_factor_however_often_they_are_set() -> None:
    groups = parameter_groups(tiny_model(), **RATES)
    for factor in (0.5, 1.0, 0.25):
        set_learning_rates(groups, factor)
        assert [group["lr"] for group in groups] == [group["peak_lr"] * factor for group in groups]
        assert {group["peak_lr"] for group in groups} == {1e-4, 1e-2}
