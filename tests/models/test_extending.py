"""A trained model with more tasks answers the old ones as before, whatever its family and its sharing."""

from typing import Any

import pytest
import tiny
import torch
from two_tasks import IDS, MASK, TASKS

from nlp_mtl.errors import ModelError
from nlp_mtl.models.checksum import weights_checksum
from nlp_mtl.models.extending import extended
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task

NEW = [
    Task("pos", "token-classification", ("x", "y", "z"), "accuracy"),
    Task("tone_task", "text-classification", ("c", "d", "e"), "accuracy"),
    Task("mood", "multi-label-classification", ("f", "g"), "micro_f1"),
]
SHARING: list[dict[str, Any]] = [
    {"strategy": "layer_mix"}, {"strategy": "task_embedding"}, {"strategy": "gate"},
    {"strategy": "mmoe", "num_experts": 2, "expert_size": 4},
    {"strategy": "ple", "num_experts": 1, "expert_size": 4, "num_task_experts": 1, "num_levels": 1},
    {"strategy": "towers", "num_layers": 1, "cross_stitch": False},
    {"strategy": "lora", "rank": 2, "alpha": 4},
]  # fmt: skip


def trained(family: str = "bert", tasks: list[Task] = TASKS, **options: Any) -> MultiTaskModel:
    """A model none of whose weights are what they start as."""
    model = from_encoder(tiny.encoder(family), tasks, **options).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found: dict[str, torch.Tensor] = model.eval()(IDS, MASK)
    return found


def assert_extends(base: MultiTaskModel, tasks: list[Task]) -> MultiTaskModel:
    before = weights_checksum(base)
    torch.manual_seed(0)
    model = extended(base, [*base.config.task_list(), *tasks])
    old, new = logits(base), logits(model)
    assert {*new} == {*old, *(task.name for task in tasks)}
    assert model.task_names == (*base.task_names, *(task.name for task in tasks))
    for task in old:
        assert torch.equal(old[task], new[task]), task
    assert all(torch.isfinite(one).all() for one in new.values())
    assert weights_checksum(base) == before
    parameters = {parameter.data_ptr() for parameter in base.parameters()}
    assert not parameters & {parameter.data_ptr() for parameter in model.parameters()}
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_old_answers_are_bit_equal_in_every_family(family: str) -> None:
    assert_extends(trained(family), NEW)


@pytest.mark.parametrize("sharing", SHARING, ids=lambda one: one["strategy"])
def test_old_answers_are_bit_equal_with_what_lies_between(sharing: dict[str, Any]) -> None:
    model = assert_extends(trained(sharing=sharing), NEW)
    assert model.config.sharing == sharing


def test_a_new_tasks_tower_starts_as_the_mean_of_the_old_ones() -> None:
    base = trained(sharing={"strategy": "towers", "num_layers": 1, "cross_stitch": False})
    state = extended(base, [*TASKS, NEW[0]]).state_dict()
    name = "encoder.encoder.layer.1.copies.{}_task.output.dense.weight"
    old = [base.state_dict()[name.format(task)] for task in ("ner", "topic")]
    torch.testing.assert_close(state[name.format("pos")], (old[0] + old[1]) / 2)


@pytest.mark.parametrize(
    ("sharing", "told"),
    [
        ({"strategy": "towers", "num_layers": 1, "cross_stitch": True}, "mixes the states of all tasks"),
        (
            {"strategy": "ple", "num_experts": 1, "expert_size": 4, "num_task_experts": 1, "num_levels": 2},
            "experts of all",
        ),
    ],
    ids=["towers", "ple"],
)
def test_where_a_task_more_would_change_old_answers_it_is_refused(sharing: dict[str, Any], told: str) -> None:
    base = trained(sharing=sharing)
    with pytest.raises(ModelError, match=f"the model cannot get the task `pos`: .*{told}"):
        extended(base, [*TASKS, NEW[0]])
    assert torch.equal(logits(extended(base, TASKS))["ner"], logits(base)["ner"])  # the same tasks go on


def test_a_pooler_that_nothing_read_before_is_new() -> None:
    base = trained(tasks=TASKS[:1])
    assert not any("pooler" in name for name in base.state_dict())
    model = assert_extends(base, [NEW[1]])
    assert any("pooler" in name for name in model.state_dict())


def test_a_chain_stays() -> None:
    chained = [Task("ner", "token-classification", ("O", "B-X", "I-X"), "span_f1", decoder="crf")]
    model = assert_extends(trained(tasks=chained), [NEW[0]])
    assert {name for name in dict(model.named_parameters()) if "transitions" in name} == {"heads.ner_head.transitions"}


def test_new_heads_follow_from_the_seed_and_dropout_from_the_recipe() -> None:
    base = trained()
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(extended(base, [*TASKS, NEW[0]], dropout=0.3).state_dict()["heads.pos_head.classifier.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    model = extended(base, [*TASKS, NEW[0]], dropout=0.3)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert base.config.encoder_config.hidden_dropout_prob == 0.0
