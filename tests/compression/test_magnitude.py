"""Weights that become 0, and stay 0 while the others learn."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stock_models import tiny_model
from tiny_runs import assert_same_end, moved, stopped_after, tiny_recipe, weights
from trained import run as trained_run

from nlp_mtl import Recipe, train
from nlp_mtl.compress import compress
from nlp_mtl.compression.magnitude import prune_magnitude, share_of_zeros
from nlp_mtl.recipe_compression import CompressionSpec
from nlp_mtl.training.held_back import layer_matrices


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert"])
def test_the_lowest_of_all_become_zero_and_nothing_else_changes(family: str) -> None:
    model = tiny_model(family)
    before = {name: one.weight.detach().clone() for name, one in layer_matrices(model).items()}
    rest = {name: one.clone() for name, one in model.state_dict().items() if name.removesuffix(".weight") not in before}
    prune_magnitude(model, 0.4, "global")
    values = torch.cat([one.flatten().abs() for one in before.values()])
    limit = values.kthvalue(round(0.4 * len(values))).values
    for name, one in layer_matrices(model).items():
        assert torch.equal(one.weight, torch.where(before[name].abs() <= limit, 0, before[name]))
    assert share_of_zeros(model) == pytest.approx(0.4, abs=1e-3)
    now = model.state_dict()
    assert all(torch.equal(now[name], one) for name, one in rest.items())
    assert now.keys() == rest.keys() | {f"{name}.weight" for name in before}  # no masks are left


def test_by_layer_each_matrix_has_its_share_of_zeros() -> None:
    model = tiny_model()
    with torch.no_grad():
        next(iter(layer_matrices(model).values())).weight.mul_(100)
    everywhere = copy.deepcopy(model)
    prune_magnitude(model, 0.25, "layer")
    assert {int((one.weight == 0).sum()) / one.weight.numel() for one in layer_matrices(model).values()} == {0.25}
    prune_magnitude(everywhere, 0.25, "global")
    assert not (next(iter(layer_matrices(everywhere).values())).weight == 0).any()


def test_adapters_are_none_of_the_encoders_weights() -> None:
    model = tiny_model(sharing={"strategy": "lora", "rank": 2, "alpha": 4})
    prune_magnitude(model, 0.5, "layer")
    assert all(one.detach().any() for name, one in model.named_parameters() if ".lora_A." in name)
    assert share_of_zeros(model) == 0.5


@pytest.mark.parametrize(
    "training",
    [
        {"weight_decay": 0.5, "ema_decay": 0.5},
        {"l1_penalty": 1e-2, "l2_penalty": 1e-2, "max_grad_norm": 0.1},
        {"gradient_checkpointing": True, "layer_decay": 0.5},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cores", [1, 2], indirect=True)
def test_zeros_stay_zero_while_the_others_learn(cores: int, training: dict[str, Any], tmp_path: Path) -> None:
    run = trained_run(tmp_path, max_steps=5, dropout=0.1, **training)
    prune_magnitude(run.model, 0.5, "global")
    before = {name: one.weight.detach().clone() for name, one in layer_matrices(run.model).items()}
    run.train()
    for name, one in layer_matrices(run.model).items():
        assert torch.equal(one.weight == 0, before[name] == 0), name
        assert not torch.equal(one.weight, before[name])


def test_other_models_zeros_learn(tmp_path: Path) -> None:
    run = trained_run(tmp_path, max_steps=2)
    for one in layer_matrices(run.model).values():
        one.weight.data[:, 0] = 0
    run.train()
    assert all(one.weight[:, 0].any() for one in layer_matrices(run.model).values())


def pruned_run(folder: Path) -> Recipe:
    """The recipe by which a pruned model was trained again."""
    recipe = tiny_recipe(folder, max_steps=2, save_every=1, keep_last=9)
    train(recipe)
    compress(recipe.output_dir, folder / "small", compression=CompressionSpec(magnitude=0.5, finetune_steps=4))
    return Recipe.from_yaml(folder / "small" / "recipe.yaml")


def test_a_resumed_run_keeps_the_same_zeros_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    recipe = pruned_run(tmp_path)
    small = tmp_path / "small"
    zeros = {name: one == 0 for name, one in weights(small).items() if one.ndim == 2 and ".layer." in name}
    assert 0.49 < sum(int(one.sum()) for one in zeros.values()) / sum(one.numel() for one in zeros.values()) < 0.51
    stopped = stopped_after(small, 2, tmp_path / "stopped")
    train(moved(recipe, stopped), resume=True)
    assert_same_end(small, stopped)
