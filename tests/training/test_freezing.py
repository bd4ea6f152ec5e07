from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, encoder
from tiny_runs import loss_lines
from trained import Weights, run

from nlp_mtl import ModelError
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.tasks import Task
from nlp_mtl.training.freezing import Thaw, freeze, layer_depths

TASKS = [
    Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1"),
    Task("topic", "text-classification", ("a", "b"), "accuracy"),
]


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
        run(tmp_path, frozen_layers=3).train()


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
    Thaw(model, None).drop_gradients(0)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("penalty", ["l1_penalty", "l2_penalty"])
def test_a_penalty_draws_matrices_to_0_and_leaves_biases(tmp_path: Path, penalty: str) -> None:
    plain, drawn = (
        run(tmp_path / name, max_steps=12, weight_decay=0, max_grad_norm=0, **{penalty: value})
        for name, value in (("plain", 0.0), ("drawn", 10.0))
    )
    plain.train()
    drawn.train()
    sizes = [sum(float(p.detach().abs().sum()) for p in one.model.parameters() if p.ndim > 1) for one in (plain, drawn)]
    assert sizes[1] < 0.9 * sizes[0]
    norms = [loss_lines(one.folder)[0]["grad_norm"] for one in (plain, drawn)]
    assert norms[1] > norms[0]
