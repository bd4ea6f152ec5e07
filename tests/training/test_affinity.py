"""Affinities between tasks: what a look-ahead step does, and that nothing of it stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import alone_and_in_two, assert_resumes_exactly, loss_lines, values, weights
from torch import nn
from trained import run

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.training.affinity import Affinities, LookAhead


def recipe_values(folder: Path, **gradients: Any) -> dict[str, Any]:
    given = values(folder, num_epochs=1.5, eval_every=3, log_every=1, keep_last=9, dropout=0.1)
    return {**given, "gradients": {"measure_every": 2, "look_ahead": True, **gradients}}


def test_affinities_are_the_closed_form_for_quadratic_losses(tmp_path: Path) -> None:
    tasks = run(tmp_path).tasks[:2]
    shared = nn.Parameter(torch.tensor([1.0, 2.0]))
    targets = torch.tensor([[0.0, 0.0], [3.0, 2.0]])

    def losses() -> torch.Tensor:
        return (shared - targets).square().sum(1)

    weights = torch.tensor([0.25, 4.0])  # gradients come weighted, and affinities are those of the losses themselves
    rows = [[weight * 2 * (shared.detach() - target)] for weight, target in zip(weights, targets, strict=True)]
    found, before = Affinities(tasks), shared.detach().clone()
    found.measure([shared], rows, [0, 1], losses().detach(), LookAhead(losses, weights, 0.1))
    assert torch.equal(shared, before)
    # After a step of 0.1 the first is at (0.8, 1.6), the second at (1.4, 2).
    told = found.told()["affinities"]
    assert told["ner"] == pytest.approx({"ner": 1 - 3.2 / 5, "pos": 1 - (2.2**2 + 0.4**2) / 4})
    assert told["pos"] == pytest.approx({"ner": 1 - (1.4**2 + 4) / 5, "pos": 1 - 1.6**2 / 4})
    assert found.told() == {}
    found.measure([shared], rows, [0, 1], losses().detach(), LookAhead(losses, torch.tensor([0.0, 4.0]), 0.1))
    assert set(found.told()["affinities"]) == {"pos"}  # a task without a weight has no step


def test_measuring_changes_nothing_of_what_is_learned(tmp_path: Path) -> None:
    given = recipe_values(tmp_path)
    train(Recipe.from_dict(given))
    given |= {"output_dir": str(tmp_path / "plain"), "gradients": {"measure_every": 2}}
    train(Recipe.from_dict(given))
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, weights(tmp_path / "plain")[name]), name
    told = [line["affinities"] for line in loss_lines(tmp_path / "run") if "affinities" in line]
    assert len(told) > 2
    names = {"ner", "pos", "sentiment"}
    assert {(one, other) for line in told for one in line for other in line[one]} == {
        (a, b) for a in names for b in names
    }
    # A step against a task's own gradient lowers its own loss, at this learning rate.
    assert all(line[task][task] > 0 for line in told[1:] for task in ("ner", "pos") if task in line)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(recipe_values(tmp_path, strategy="pcgrad"))
    recipe = Recipe.from_dict({**recipe.to_dict(), "training": {**recipe.training.model_dump(), "log_every": 5}})
    assert_resumes_exactly(recipe, 6, tmp_path / "stopped")


@pytest.mark.long
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    given = recipe_values(tmp_path)
    given["encoder"] = values(tmp_path / "still", dropout=0.0)["encoder"]
    for one, two in alone_and_in_two(tmp_path, given):
        whole, shared = (line.get("affinities", {}) for line in (one, two))
        assert shared.keys() == whole.keys()
        for task in whole:
            assert shared[task] == pytest.approx(whole[task], rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("gradients", "told"),
    [
        ({"look_ahead": True}, r"gradients\.look_ahead: say in which steps"),
        ({"measured_layers": [1]}, r"gradients\.measured_layers: nothing is measured"),
    ],
)
def test_what_is_measured_needs_to_be_told_when(tmp_path: Path, gradients: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({**values(tmp_path), "gradients": gradients})
