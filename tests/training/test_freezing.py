from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, encoder, encoder_config
from tiny_runs import loss_lines, tiny_recipe
from trained import Weights, run
from transformers import AutoModel
from two_tasks import TASKS

from nlp_mtl import ModelError, RecipeError, train
from nlp_mtl.errors import NlpMtlError
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task
from nlp_mtl.training.freezing import Thaw, freeze, layer_depths
from nlp_mtl.training.optimizer import add_penalties


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_encoder_leaves_only_heads_and_what_they_alone_read(family: str) -> None:
    model = from_encoder(encoder(family), TASKS)
    freeze(model, "encoder")
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning
    assert all(name.startswith(("heads.", "encoder.pooler.")) for name in learning)


@pytest.mark.parametrize(("frozen", "depths"), [(0, set()), ("embeddings", {0}), (1, {0, 1}), (2, {0, 1, 2})])
def test_so_many_of_the_lowest_layers_do_not_change(tmp_path: Path, frozen: int | str, depths: set[int]) -> None:
    a_run = run(tmp_path, frozen_layers=frozen, max_steps=3, dropout=0.1)
    a_run.train()
    of = layer_depths(a_run.model)
    expected = {name for name, depth in of.items() if depth not in depths}
    assert changed(a_run.seen[0], a_run.weights()) == expected
    assert {depth for depth in of.values() if depth is not None} == {0, 1, 2}


def test_more_frozen_layers_than_there_are_are_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"frozen_layers is 3, but the encoder has 2"):
        run(tmp_path, frozen_layers=3)


def test_layers_join_from_the_top_after_every_so_many_steps(tmp_path: Path) -> None:
    a_run = run(tmp_path, unfreeze_every=2, eval_every=1, max_steps=8, warmup_fraction=0)
    a_run.train()
    of = layer_depths(a_run.model)
    for step in range(8):
        learning = {of[name] for name in changed(a_run.seen[step], a_run.seen[step + 1]) if name in of}
        joined = [depth for depth, first in ((2, 2), (1, 4), (0, 6)) if step >= first]
        assert learning == {None, *joined}, step


def test_a_run_that_unfreezes_is_resumed_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", unfreeze_every=2, max_steps=8, save_every=3, keep_last=9, dropout=0.1)
    whole.train()
    again = run(tmp_path / "whole", unfreeze_every=2, max_steps=8, save_every=3, keep_last=9, dropout=0.1)
    for step in (6, 8):
        for file in (folder := again.folder / "checkpoints" / f"step-{step}").iterdir():
            file.unlink()
        folder.rmdir()
    again.train(resume=True)
    assert changed(whole.weights(), again.weights()) == set()


def test_without_unfreezing_nothing_is_dropped() -> None:
    model = from_encoder(encoder(), TASKS)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    Thaw(model, None, 10).drop_gradients(0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_penalties_add_their_gradients_to_matrices_that_learn_and_to_nothing_else() -> None:
    torch.manual_seed(0)
    layer, idle = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    layer(torch.ones(4, 3)).sum().backward()
    before = {name: p.grad.clone() for name, p in layer.named_parameters()}
    penalty = 0.3 * layer.weight.abs().sum() + 0.7 * layer.weight.square().sum()
    (expected,) = torch.autograd.grad(penalty, [layer.weight])
    add_penalties([*layer.named_parameters(), *idle.named_parameters()], 0.3, 0.7)
    torch.testing.assert_close(layer.weight.grad, before["weight"] + expected)
    assert torch.equal(layer.bias.grad, before["bias"])
    assert idle.weight.grad is None


@pytest.mark.parametrize("penalty", ["l1_penalty", "l2_penalty"])
def test_a_penalty_of_the_recipe_counts_in_the_gradient_of_a_run(tmp_path: Path, penalty: str) -> None:
    plain, drawn = (
        run(tmp_path / str(value), max_steps=2, max_grad_norm=0, **{penalty: value}) for value in (0.0, 10.0)
    )
    plain.train()
    drawn.train()
    norms = [loss_lines(one.folder)[0]["grad_norm"] for one in (plain, drawn)]
    assert norms[1] > 2 * norms[0]


def test_deberta_s_shared_norm_and_first_convolution_are_frozen_with_what_they_belong_to() -> None:
    config = encoder_config("deberta-v2")
    config.norm_rel_ebd, config.conv_kernel_size, config.conv_act = "layer_norm", 3, "gelu"
    torch.manual_seed(0)
    model = from_encoder(AutoModel.from_config(config), TASKS)
    depths = layer_depths(model)
    assert {depths[name] for name in depths if name.startswith("encoder.encoder.LayerNorm.")} == {0}
    assert {depths[name] for name in depths if name.startswith("encoder.encoder.conv.")} == {1}


def test_unfreezing_that_ends_too_early_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, unfreeze_every=2, max_steps=4).train()
    assert [message for message in caplog.messages if "never learn" in message] == [
        "training.unfreeze_every: of 4 steps, 2 a layer, the lowest 2 of the encoder's layers (embeddings counted) "
        "never learn"
    ]


@pytest.mark.parametrize("frozen", [2, "encoder"])
def test_nothing_left_to_unfreeze_is_refused(tmp_path: Path, frozen: int | str) -> None:
    with pytest.raises(RecipeError, match=r"training\.unfreeze_every"):
        run(tmp_path, frozen_layers=frozen, unfreeze_every=2)


@pytest.mark.parametrize("frozen", [-1, "heads"])
def test_what_cannot_be_frozen_is_refused(tmp_path: Path, frozen: int | str) -> None:
    with pytest.raises(RecipeError, match=r"training\.frozen_layers"):
        run(tmp_path, frozen_layers=frozen)


def test_a_run_that_cannot_begin_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    train(recipe)
    files = {path: path.read_bytes() for path in Path(recipe.output_dir).rglob("*") if path.is_file()}
    for changes in ({"frozen_layers": 99}, {"layout": "packed", "trackers": ["mlflow"]}):
        wrong = recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
        with pytest.raises(NlpMtlError):
            train(wrong, overwrite=True)
    assert {path: path.read_bytes() for path in Path(recipe.output_dir).rglob("*") if path.is_file()} == files


def towers(tasks: list[Task], **sharing: Any) -> MultiTaskModel:
    return from_encoder(
        encoder(), tasks, sharing={"strategy": "towers", "num_layers": 1, "cross_stitch": True, **sharing}
    )


@pytest.mark.parametrize("frozen", ["encoder", 2])
def test_towers_cannot_be_frozen_as_they_would_stay_alike(frozen: Any) -> None:
    with pytest.raises(ModelError, match="layers that each task has for itself"):
        freeze(towers(TASKS), frozen)
    freeze(towers(TASKS), 1)


def test_the_name_of_a_task_does_not_move_its_tower_to_the_embeddings() -> None:
    embed = Task("embed_relative", "text-classification", ("a", "b"), "accuracy")
    depths = layer_depths(towers([*TASKS, embed], cross_stitch=False))
    of_tower = {depth for name, depth in depths.items() if ".copies.embed_relative_task." in name}
    assert of_tower == {2}


def test_penalties_leave_cross_stitch_units_alone() -> None:
    model = towers(TASKS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_penalties(model.named_parameters(), 0.1, 0.1)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not gradients["encoder.encoder.layer.1.stitch"].any()
    assert gradients["encoder.encoder.layer.0.output.dense.weight"].any()
