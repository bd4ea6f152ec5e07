"""Heads, units and layers that are taken out: nobody can tell them from such that say nothing, and they are gone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_batches import PACKABLE, micro_batch
from safetensors.torch import load_file
from stock_models import tiny_model
from tiny import FAMILIES, tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from nlp_mtl import ModelError
from nlp_mtl.compression.heads import check_alike, find_heads, take_out_heads, without_heads
from nlp_mtl.compression.layers import keep_layers, layers_left
from nlp_mtl.compression.rebuilding import axes
from nlp_mtl.compression.units import find_units, keep_units, units_left, without_units
from nlp_mtl.hub.export import export_task
from nlp_mtl.models.attention_heads import attentions, keep_heads, layers_of
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task

WITH_HEADS = sorted({*FAMILIES} - {"mpnet"})
STOCK: dict[str, Any] = {"pos": AutoModelForTokenClassification, "sentiment": AutoModelForSequenceClassification}


def logits(model: MultiTaskModel, *, packed: bool = False) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found: dict[str, torch.Tensor] = model(**micro_batch(packed=packed).inputs)
    return found


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """To rounding: products of matrices round by their sizes, and by where in memory these lie."""
    assert one.keys() == two.keys()
    for task, expected in one.items():
        torch.testing.assert_close(two[task], expected, rtol=1e-4, atol=1e-4, msg=lambda m, t=task: f"{t}: {m}")


def in_old_shape(model: MultiTaskModel, weights: dict[str, torch.Tensor]) -> MultiTaskModel:
    whole = copy.deepcopy(model)
    whole.load_state_dict(weights)
    return whole


def saved_and_loaded(model: MultiTaskModel, folder: Path) -> MultiTaskModel:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return load_model(folder)[0]


def some_heads(model: MultiTaskModel) -> list[list[int]]:
    """Other heads in each layer, in one of them all."""
    return [[1], [0, 1]][: len(find_heads(model))]


@pytest.mark.parametrize("family", WITH_HEADS)
def test_heads_that_are_taken_out_are_as_heads_that_nobody_hears(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    kept = some_heads(model)
    expected = logits(in_old_shape(model, without_heads(model, kept)))
    assert any(not torch.allclose(one, expected[task]) for task, one in logits(model).items())
    smaller = take_out_heads(model, kept)
    assert_same(expected, logits(smaller))
    loaded = saved_and_loaded(smaller, tmp_path)
    assert_same(logits(smaller), logits(loaded))
    assert loaded.config.heads_per_layer == [len(heads) for heads in kept]
    if family in PACKABLE:
        assert loaded.packs("packed")
        assert model.packs("packed")
        whole = in_old_shape(model, without_heads(model, kept))
        assert_same(logits(whole, packed=True), logits(loaded, packed=True))


@pytest.mark.parametrize("family", WITH_HEADS)
def test_the_file_holds_no_weight_of_heads_that_were_taken_out(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    kept = [[1] for _ in find_heads(model)]
    smaller = take_out_heads(model, kept)
    smaller.save_pretrained(tmp_path / "small")
    model.save_pretrained(tmp_path / "big")
    small, big = (load_file(tmp_path / name / "model.safetensors") for name in ("small", "big"))
    gone = 0
    for one in attentions(model.encoder):
        for name, linear in [*one.inputs.items(), (one.output_name, one.output)]:
            key = f"encoder.{name}.weight"
            assert small[key].numel() * 2 == big[key].numel()
            gone += linear.weight.numel() // 2
            if linear.bias is not None and linear is not one.output:
                assert len(small[f"encoder.{name}.bias"]) * 2 == len(big[f"encoder.{name}.bias"])
                gone += len(linear.bias) // 2
    assert sum(one.numel() for one in big.values()) - sum(one.numel() for one in small.values()) == gone > 0


@pytest.mark.parametrize("family", WITH_HEADS)
def test_a_task_without_some_heads_exports_to_its_stock_class_with_heads_of_zeros(family: str, tmp_path: Path) -> None:
    smaller = take_out_heads(model := tiny_model(family), some_heads(model))
    for task, stock in STOCK.items():
        export_task(smaller, tokenizer(), task, tmp_path / task)
        loaded, told = stock.from_pretrained(tmp_path / task, output_loading_info=True)
        assert not any(told.values()), told
        inputs = micro_batch(packed=False).inputs
        segments = {"token_type_ids"} - ({"token_type_ids"} if smaller.has_segments else set())
        with torch.no_grad():
            found = loaded(**{key: value for key, value in inputs.items() if key not in segments}).logits
        assert_same({task: logits(smaller)[task]}, {task: found})


def test_heads_can_be_taken_out_again() -> None:
    model = tiny_model()
    once = take_out_heads(model, [[1], [0, 1]])
    assert [one.num_heads for one in find_heads(once)] == [1, 2]
    assert_same(logits(take_out_heads(model, [[1], [0]])), logits(take_out_heads(once, [[0], [0]])))


def test_a_family_whose_layers_share_something_a_head_is_refused_and_left_as_it_is() -> None:
    model = tiny_model("mpnet")
    before = logits(model)
    kept = [[0], [1]]
    smaller = take_out_heads(model, kept)
    with pytest.raises(ModelError, match="heads: nothing can be taken out of the layers of the family `mpnet`"):
        check_alike(model, without_heads(model, kept), smaller, "heads")
    assert all(torch.equal(one, before[task]) for task, one in logits(model).items())


def test_what_is_not_what_it_should_be_is_found_by_running_it() -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="hidden states differ by"):
        check_alike(model, without_heads(model, [[1], [1]]), take_out_heads(model, [[0], [1]]), "heads")


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ([[0]], "heads of 1 layers are told, but there are 2"),
        ([[0], []], r"a layer with 2 heads cannot keep \[\]"),
        ([[0], [2]], r"cannot keep \[2\]"),
        ([[0], [1, 1]], r"cannot keep \[1, 1\]"),
    ],
)
def test_heads_that_are_not_there_cannot_be_kept(kept: list[list[int]], why: str) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=why):
        keep_heads(model.encoder, kept)
    assert [one.num_heads for one in find_heads(model)] == [2, 2]


def test_a_config_whose_heads_do_not_fit_is_told(tmp_path: Path) -> None:
    saved_and_loaded(take_out_heads(tiny_model(), [[0], [1]]), tmp_path)
    file = tmp_path / "config.json"
    for wrong in ([1], [1, 9], "two"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "heads_per_layer": wrong}))
        with pytest.raises(ModelError, match=r"cannot be loaded: .*(heads|integer)"):
            load_model(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_units_that_are_taken_out_are_as_units_that_nobody_hears(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    units = find_units(model)
    generator = torch.Generator().manual_seed(0)
    kept = {layer: torch.randperm(units.width, generator=generator)[:10].sort().values for layer in units.outputs}
    expected = logits(in_old_shape(model, without_units(model, units, kept)))
    assert any(not torch.allclose(one, expected[task]) for task, one in logits(model).items())
    smaller = keep_units(model, units, kept)
    assert_same(expected, logits(smaller))
    assert getattr(smaller.config.encoder_config, units.key) == 10
    assert axes(smaller, units.key).keys() == units.axes.keys()
    loaded = saved_and_loaded(smaller, tmp_path / "model")
    assert_same(logits(smaller), logits(loaded))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for name, axis in units.axes.items():
        assert weights[name].shape[axis.place] == 10 * axis.blocks
    for task, stock in STOCK.items():  # a stock configuration has a place for the width
        export_task(smaller, tokenizer(), task, tmp_path / task)
        inputs = {key: value for key, value in micro_batch(packed=False).inputs.items() if key != "token_type_ids"}
        with torch.no_grad():
            found = stock.from_pretrained(tmp_path / task)(**inputs).logits
        assert_same({task: logits(smaller)[task]}, {task: found})


@pytest.mark.parametrize(
    ("width", "share", "left"),
    [(32, 0.5, 16), (32, 0.99, 8), (3072, 0.3, 2152), (10, 0.5, 5), (10, 0.99, 1), (8, 0.5, 8)],
)
def test_widths_stay_whole_and_multiples_of_eight_where_they_were(width: int, share: float, left: int) -> None:
    assert units_left(width, share) == left


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [1, [1], [2]], ids=str)
def test_layers_that_are_left_out_are_as_layers_that_are_skipped(family: str, kept: Any, tmp_path: Path) -> None:
    model = tiny_model(family)
    if family == "albert" and isinstance(kept, list):
        with pytest.raises(ModelError, match="all layers of the family `albert` have the same weights"):
            keep_layers(model, kept)
        return
    if family == "modernbert" and kept == [2]:
        with pytest.raises(ModelError, match="The first layer of some families has other parts: keep it"):
            keep_layers(model, kept)
        return
    smaller = keep_layers(model, kept)
    skipping = copy.deepcopy(model)
    if family == "albert":
        skipping.encoder.encoder.config.num_hidden_layers = 1
    else:
        (layers,) = (one for one in skipping.encoder.modules() if isinstance(one, nn.ModuleList))
        del layers[0 if kept == [2] else 1]
    assert all(torch.equal(one, logits(smaller)[task]) for task, one in logits(skipping).items())
    loaded = saved_and_loaded(smaller, tmp_path)
    assert loaded.config.encoder_config.num_hidden_layers == 1
    assert_same(logits(smaller), logits(loaded))
    export_task(loaded, tokenizer(), "pos", tmp_path / "pos")
    inputs = {key: value for key, value in micro_batch(packed=False).inputs.items() if key != "token_type_ids"}
    with torch.no_grad():
        assert_same(
            {"pos": STOCK["pos"].from_pretrained(tmp_path / "pos")(**inputs).logits}, {"pos": logits(loaded)["pos"]}
        )


def test_each_kind_of_attention_stays_with_its_layer() -> None:
    model = tiny_model("modernbert")
    given = model.config.encoder_config
    assert given.layer_types == ["full_attention", "sliding_attention"]
    given.layer_types, given.num_hidden_layers = ["full_attention", "sliding_attention", "full_attention"], 3
    three = MultiTaskModel(model.config)
    assert keep_layers(three, [1, 3]).config.encoder_config.layer_types == ["full_attention"] * 2
    assert keep_layers(three, [1, 2]).config.encoder_config.layer_types == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("layers", "count", "left"),
    [(4, 6, [1, 2, 3, 6]), (2, 12, [1, 12]), (1, 6, [1]), (6, 6, [1, 2, 3, 4, 5, 6]), ([2, 5], 6, [2, 5])],
    ids=str,
)
def test_a_number_of_layers_is_the_lowest_ones_and_the_last(layers: Any, count: int, left: list[int]) -> None:
    assert layers_left(layers, count) == left


def test_a_mix_of_layers_mixes_those_that_are_left() -> None:
    model = tiny_model(sharing={"strategy": "layer_mix"})
    with torch.no_grad():
        for parameter in model.sharing.parameters():  # type: ignore[union-attr]
            parameter.normal_()
    smaller = keep_layers(model, [2])
    for task, weights in model.sharing.weights.items():  # type: ignore[union-attr]
        assert torch.equal(smaller.sharing.weights[task], weights[[0, 2]])  # type: ignore[union-attr]
    logits(smaller)


def test_heads_and_layers_go_together() -> None:
    model = tiny_model()
    both = keep_layers(take_out_heads(model, [[1], [0, 1]]), [1])
    assert both.config.heads_per_layer == [1]
    assert_same(logits(take_out_heads(keep_layers(model, [1]), [[1]])), logits(both))


@pytest.mark.parametrize("layers", [3, 0, [], [0], [3], [2, 1], [1, 1]], ids=str)
def test_layers_that_are_not_there_are_told(layers: Any) -> None:
    with pytest.raises(ModelError, match="the encoder has the layers 1 to 2: name some, in order"):
        keep_layers(tiny_model(), layers)


@pytest.mark.parametrize("layers", [2, [1, 2]], ids=str)
def test_all_layers_are_no_fewer(layers: Any) -> None:
    with pytest.raises(ModelError, match="which are all that the encoder has"):
        keep_layers(tiny_model(), layers)


@pytest.mark.parametrize(
    "sharing",
    [{"strategy": "towers", "num_layers": 1, "cross_stitch": True}, {"strategy": "lora", "rank": 2, "alpha": 4}],
)
def test_layers_in_which_tasks_have_parts_of_their_own_are_left_alone(sharing: dict[str, Any]) -> None:
    model = tiny_model(sharing=sharing)
    for take in (find_heads, find_units, lambda one: keep_layers(one, 1)):
        with pytest.raises(ModelError, match=f"sharing: {sharing['strategy']}"):
            take(model)


def test_shared_layers_lose_heads_and_units_once_for_all() -> None:
    model = tiny_model("albert")
    assert len(layers_of(model.encoder)) == len(find_heads(model)) == len(find_units(model).outputs) == 1
    assert model.config.encoder_config.num_hidden_layers == 2


def test_random_numbers_are_none_the_wiser() -> None:
    model = tiny_model(tasks=[Task("mood", "text-classification", ("bad", "good"), "accuracy")])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    keep_layers(model, 1)
    assert torch.equal(torch.rand(2), expected)
