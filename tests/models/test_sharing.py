"""What lies between encoder and heads: each strategy as its paper writes it, in any layout, saved and loaded."""

import copy
import json
import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from packed_batches import loss_and_gradients, micro_batch
from stock_models import tiny_model
from torch import Tensor, nn
from transformers import AutoModel

from nlp_mtl.errors import ModelError
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.models.sharing import Gate, LayerMix, MixtureOfExperts, ProgressiveExperts, TaskEmbedding
from nlp_mtl.models.unshared import encoder_of_task
from nlp_mtl.tasks import Task

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
POS = Task("pos", "token-classification", ("NOUN", "VERB"), "accuracy")
MOOD = Task("own_task", "text-classification", ("bad", "good"), "accuracy")  # named like what a task's own is called
TASKS = [NER, POS, MOOD]
NAMES = [task.name for task in TASKS]
EXPERTS = {"num_experts": 2, "expert_size": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "layer_mix": {"strategy": "layer_mix"},
    "task_embedding": {"strategy": "task_embedding"},
    "gate": {"strategy": "gate"},
    "mmoe": {"strategy": "mmoe", **EXPERTS},
    "ple": {"strategy": "ple", **EXPERTS, "num_task_experts": 1, "num_levels": 1},
    "ple, 2 levels": {"strategy": "ple", **EXPERTS, "num_task_experts": 2, "num_levels": 2},
    "ple, 3 levels": {"strategy": "ple", **EXPERTS, "num_task_experts": 1, "num_levels": 3},
    "towers": {"strategy": "towers", "num_layers": 1, "cross_stitch": True},
    "towers alone": {"strategy": "towers", "num_layers": 1, "cross_stitch": False},
    "lora": {"strategy": "lora", "rank": 2, "alpha": 4},
}
every_strategy = pytest.mark.parametrize("strategy", SETTINGS)


def model(strategy: str, family: str = "bert", tasks: list[Task] = TASKS, **options: Any) -> MultiTaskModel:
    """With what sharing adds moved away from where it starts."""
    made = from_encoder(tiny.encoder(family, **options), tasks, max_length=32, sharing=SETTINGS[strategy]).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("sharing.") or name.endswith(".stitch") or ".copies." in name or ".lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return made


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[3, 7:] = 0
    return ids.masked_fill(mask == 0, tiny.PAD), mask


def perceptron(expert: nn.Module, hidden: Tensor) -> Tensor:
    one, _, other = expert.children()
    assert isinstance(one, nn.Linear)
    assert isinstance(other, nn.Linear)
    return torch.clamp(hidden @ one.weight.T + one.bias, min=0) @ other.weight.T + other.bias


def mixed(gate: nn.Module, hidden: Tensor, outputs: list[Tensor]) -> Tensor:
    assert isinstance(gate, nn.Linear)
    scores = (hidden @ gate.weight.T).exp()
    shares = scores / scores.sum(-1, keepdim=True)
    return torch.stack([shares[..., place, None] * one for place, one in enumerate(outputs)]).sum(0)


def randomised(layers: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    for parameter in layers.parameters():
        parameter.data.normal_(generator=generator)
    return layers.double()


HIDDEN = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_a_layer_mix_is_the_scaled_softmax_mean_of_all_layers() -> None:
    layers = randomised(LayerMix(["a", "b"], num_layers=2))
    states = [HIDDEN, 2 * HIDDEN, HIDDEN**2]
    for task in ("a", "b"):
        weights, scale = layers.weights[f"{task}_task"].exp(), layers.scales[f"{task}_task"]
        expected = scale * sum(w / weights.sum() * state for w, state in zip(weights, states, strict=True))
        torch.testing.assert_close(layers(task, states), expected)
    fresh = LayerMix(["a"], num_layers=2).double()
    torch.testing.assert_close(fresh("a", states), torch.stack(states).mean(0))


def test_a_mixture_of_experts_is_each_gates_mean_of_what_experts_say() -> None:
    layers = randomised(MixtureOfExperts(["a", "b"], 4, num_experts=3, expert_size=5))
    for task in ("a", "b"):
        said = [perceptron(expert, HIDDEN) for expert in layers.experts]
        torch.testing.assert_close(layers(task, [HIDDEN]), mixed(layers.gates[f"{task}_task"], HIDDEN, said))


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_progressive_experts_extract_level_by_level(num_levels: int) -> None:
    tasks = ["a", "b", "c"]
    layers = randomised(ProgressiveExperts(tasks, 4, 2, 5, num_task_experts=1, num_levels=num_levels))
    inputs, shared_input = dict.fromkeys(tasks, HIDDEN), HIDDEN
    for level in range(num_levels):  # as figure 5 of the paper has it: everything on every level
        own = {
            task: [perceptron(expert, inputs[task]) for expert in layers.own[level][f"{task}_task"]] for task in tasks
        }
        shared = [perceptron(expert, shared_input) for expert in layers.shared[level]]
        before = inputs
        inputs = {task: mixed(layers.gates[level][f"{task}_task"], before[task], own[task] + shared) for task in tasks}
        if level < num_levels - 1:
            shared_input = mixed(layers.shared_gates[level], shared_input, [*own["a"], *own["b"], *own["c"], *shared])
    for task in tasks:
        torch.testing.assert_close(layers(task, [HIDDEN]), inputs[task])


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerMix(["a", "b"], 1),
        lambda: TaskEmbedding(["a", "b"], 4),
        lambda: Gate(["a", "b"], 4),
        lambda: MixtureOfExperts(["a", "b"], 4, 2, 3),
        lambda: ProgressiveExperts(["a", "b"], 4, 1, 3, 1, 2),
    ],
    ids=["layer_mix", "task_embedding", "gate", "mmoe", "ple"],
)
def test_gradients_are_those_of_finite_differences(make: Any) -> None:
    layers = randomised(make())
    names = [name for name, _ in layers.named_parameters()]

    def outputs(hidden: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return torch.stack([torch.func.functional_call(layers, given, (task, [hidden, hidden**2])) for task in "ab"])

    torch.autograd.gradcheck(outputs, (HIDDEN[:1, :2].clone().requires_grad_(), *layers.parameters()))


@pytest.mark.parametrize("strategy", ["task_embedding", "gate", "towers alone"])
def test_what_starts_from_nothing_first_answers_as_hard_sharing(strategy: str) -> None:
    torch.manual_seed(0)
    hard = from_encoder(tiny.encoder(), TASKS).eval()
    torch.manual_seed(0)
    other = from_encoder(tiny.encoder(), TASKS, sharing=SETTINGS[strategy]).eval()
    with torch.no_grad():
        expected, found = hard(*batch()), other(*batch())
    assert all(torch.equal(expected[name], found[name]) for name in NAMES)


def test_cross_stitched_towers_start_alike_so_that_they_answer_as_hard_sharing() -> None:
    torch.manual_seed(0)
    hard = from_encoder(tiny.encoder(), TASKS).eval()
    torch.manual_seed(0)
    other = from_encoder(tiny.encoder(), TASKS, sharing=SETTINGS["towers"]).eval()
    stitch = dict(other.named_parameters())["encoder.encoder.layer.1.stitch"]
    torch.testing.assert_close(stitch[:, :, 5], torch.full((3, 3), 0.05).fill_diagonal_(0.9))
    with torch.no_grad():
        expected, found = hard(*batch()), other(*batch())
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_tower_alone_is_an_encoder_of_its_own_above_the_shared_layers(family: str) -> None:
    if family == "albert":
        pytest.skip("its layers are one")
    one = model("towers alone", family)
    for task in TASKS:
        own = from_encoder(tiny.encoder(family), TASKS, max_length=32).eval()
        weights = {
            name.replace(f".copies.{task.name}_task", ""): value
            for name, value in one.state_dict().items()
            if ".copies." not in name or f".copies.{task.name}_task." in name
        }
        own.load_state_dict(weights)
        with torch.no_grad():
            assert torch.equal(one(*batch())[task.name], own(*batch())[task.name])


def test_a_cross_stitch_unit_mixes_the_towers_number_by_number() -> None:
    one = model("towers")
    layer = one.encoder.encoder.layer[-1]
    hidden = torch.randn(2, 5, 16)
    with torch.no_grad():
        towers = torch.stack([tower(hidden) for tower in layer.copies.values()])
        expected = (layer.stitch[:, :, None, None, :] * towers[None]).sum(1)
        torch.testing.assert_close(layer(hidden), expected.flatten(0, 1))


@pytest.mark.parametrize("strategy", [one for one in SETTINGS if one != "lora"])
@pytest.mark.parametrize(
    "family", ["bert", "albert", "modernbert", "xlm-roberta"]
)  # post-norm, one layer, rotary, offset
def test_packed_texts_give_the_loss_and_the_gradients_of_padded_ones(family: str, strategy: str) -> None:
    if family == "albert" and "towers" in strategy:
        pytest.skip("its layers are one")
    one = tiny_model(family, sharing=SETTINGS[strategy]).train()  # its dropout rates are 0
    expected_loss, expected = loss_and_gradients(one, micro_batch(packed=False))
    assert one.packs("packed")
    loss, found = loss_and_gradients(one, micro_batch(packed=True))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * scale, name


@every_strategy
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_unused_parameters_are_those_that_active_tasks_get_no_gradient_from(family: str, strategy: str) -> None:
    one = model(strategy, family).train()
    ids, mask = batch()
    for count in (1, 2, 3):
        for active in combinations(NAMES, count):
            one.zero_grad(set_to_none=True)
            rows = {name: torch.tensor([0, 2] if name in active else [], dtype=torch.long) for name in NAMES}
            logits = one(ids, mask, rows=rows)
            sum((value.double() ** 2).sum() for value in logits.values()).backward()
            learning = {name: p for name, p in one.named_parameters() if p.requires_grad}
            assert [name for name, p in learning.items() if p.grad is None] == []
            unused = {id(parameter) for parameter in one.unused_parameters(active)}
            for name, parameter in learning.items():
                assert parameter.grad is not None
                assert (id(parameter) not in unused) or not parameter.grad.any(), name
            silent = {name for name, p in learning.items() if p.grad is not None and not p.grad.any()}
            known = {name for name, parameter in learning.items() if id(parameter) in unused}
            assert {name for name in silent - known if not name.startswith("encoder.embeddings")} == set()


@every_strategy
def test_saved_and_loaded_it_answers_bit_for_bit(
    strategy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = model(strategy)
    one.save_pretrained(tmp_path)
    logging.getLogger("transformers").addHandler(caplog.handler)
    for loaded in (MultiTaskModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert loaded.config.sharing == SETTINGS[strategy]
        with torch.no_grad():
            ours, theirs = one(*batch()), loaded.eval()(*batch())
        assert all(torch.equal(ours[task], theirs[task]) for task in NAMES)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []


@every_strategy
def test_a_copy_answers_alike_and_shares_nothing(strategy: str) -> None:
    one = model(strategy)
    other = copy.deepcopy(one)
    with torch.no_grad():
        assert torch.equal(one(*batch())["ner"], other(*batch())["ner"])
    assert {p.data_ptr() for p in one.parameters()}.isdisjoint(p.data_ptr() for p in other.parameters())


def test_towers_need_layers_that_can_be_told_apart_and_one_that_is_shared() -> None:
    with pytest.raises(ModelError, match="layers of a albert are not in one list"):
        from_encoder(tiny.encoder("albert"), TASKS, sharing=SETTINGS["towers"])
    with pytest.raises(ModelError, match="num_layers is 2, but the encoder has 2"):
        from_encoder(tiny.encoder(), TASKS, sharing={**SETTINGS["towers"], "num_layers": 2})


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "deberta-v2"])
def test_adapters_add_a_low_rank_product_to_the_rows_of_their_task(family: str) -> None:
    one = model("lora", family)
    every = torch.arange(4)
    for task in TASKS:
        own = from_encoder(tiny.encoder(family), TASKS, max_length=32).eval()
        own.encoder.load_state_dict(encoder_of_task(one, task.name))
        own.heads.load_state_dict(one.heads.state_dict())
        rows = {name: every[1:3] if name == task.name else every for name in NAMES}
        with torch.no_grad():
            found, expected = one(*batch(), rows=rows)[task.name], own(*batch())[task.name][1:3]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_adapters_leave_what_learns_as_it_was_and_read_padded_texts() -> None:
    encoder = tiny.encoder()
    encoder.embeddings.requires_grad_(False)
    one = from_encoder(encoder, TASKS, sharing=SETTINGS["lora"])
    learning = {name for name, parameter in one.encoder.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in one.encoder.named_parameters() if not name.startswith("embeddings.")}
    started = [parameter for name, parameter in one.named_parameters() if ".lora_B." in name]
    assert len(started) == 2 * 6 * 3
    assert not any(parameter.any() for parameter in started)
    assert not one.packs("auto")
    with pytest.raises(ModelError, match="goes through the adapter of its task"):
        one.packs("packed")


def test_an_encoder_whose_layers_read_more_than_rows_has_no_adapters() -> None:
    with pytest.raises(ModelError, match="layers of a deberta-v2 read more than rows"):
        from_encoder(tiny.encoder("deberta-v2"), TASKS, sharing=SETTINGS["lora"])


def test_towers_of_one_task_have_nobody_to_mix_with_and_start_as_the_encoder() -> None:
    torch.manual_seed(0)
    hard = from_encoder(tiny.encoder(), [NER]).eval()
    torch.manual_seed(0)
    alone = from_encoder(tiny.encoder(), [NER], sharing=SETTINGS["towers"]).eval()
    with torch.no_grad():
        assert torch.equal(alone(*batch())["ner"], hard(*batch())["ner"])


@pytest.mark.parametrize(
    ("sharing", "told"),
    [
        ({"strategy": "gate_v2"}, "the strategy 'gate_v2' is not known here"),
        ({"strategy": "mmoe"}, "num_experts"),
        (None, "its config.json has no place for the weights `sharing.gates"),
    ],
)
def test_a_model_whose_sharing_is_not_known_or_lost_is_not_loaded_without_it(
    tmp_path: Path, sharing: dict[str, Any] | None, told: str
) -> None:
    model("gate").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    load_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sharing": sharing}))
    with pytest.raises(ModelError, match=told):
        load_model(tmp_path)
