"""Balancing strategies in runs: what a recipe says happens, on any layout, and a resumed run ends in the same bits."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_runs import alone_and_in_two, assert_resumes_exactly, loss_lines, moved, values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.recipe import BalancingSpec

STRATEGIES = get_args(BalancingSpec.model_fields["strategy"].annotation)


def recipe_values(folder: Path, strategy: str, **training: Any) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 1.5, "eval_every": 3, "log_every": 1, "keep_last": 9, **training})
    given["balancing"] = {"strategy": strategy, **({"period": 2} if strategy == "dwa" else {})}
    return given


def recipe_of(folder: Path, strategy: str, **training: Any) -> Recipe:
    return Recipe.from_dict(recipe_values(folder, strategy, **training))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, strategy: str) -> None:
    recipe = recipe_of(tmp_path, strategy, dropout=0.1)
    assert_resumes_exactly(recipe, 6, tmp_path / "stopped")


@pytest.mark.parametrize("strategy", ["log", "famo", "smooth_maximum", "uncertainty", "dwa"])
def test_weights_and_losses_do_not_depend_on_how_a_step_is_cut(tmp_path: Path, strategy: str) -> None:
    one = recipe_of(tmp_path, strategy)
    other = moved(one, tmp_path / "cut", max_tokens=64)
    train(one)
    train(other)
    for whole, cut in zip(loss_lines(Path(one.output_dir)), loss_lines(tmp_path / "cut"), strict=True):
        assert cut["losses"] == pytest.approx(whole["losses"], rel=2e-4)
        assert cut["weights"] == pytest.approx(whole["weights"], rel=2e-4)


@pytest.mark.parametrize("strategy", ["log", "maximum"])
def test_weights_by_a_steps_own_losses_are_those_of_the_very_losses_that_are_logged(
    tmp_path: Path, strategy: str
) -> None:
    train(recipe_of(tmp_path, strategy, dropout=0.2))  # dropout is the same in both passes
    for line in loss_lines(tmp_path / "run"):
        losses = torch.tensor([*line["losses"].values()])
        weights = torch.tensor([*line["weights"].values()])
        if strategy == "log":
            torch.testing.assert_close(weights * losses, torch.ones(3), rtol=1e-5, atol=0)
        else:
            assert weights.tolist() == torch.nn.functional.one_hot(losses.argmax(), 3).tolist()


def test_random_weights_differ_from_step_to_step_and_are_logged(tmp_path: Path) -> None:
    train(recipe_of(tmp_path, "random"))
    found = [tuple(line["weights"].values()) for line in loss_lines(tmp_path / "run")]
    assert len(set(found)) == len(found) > 5


def test_weights_of_all_steps_are_logged_also_where_lines_and_checkpoints_are_rarer(tmp_path: Path) -> None:
    each = recipe_of(tmp_path, "random")
    train(each)
    rare = moved(each, tmp_path / "rare", log_every=4, save_every=3)
    assert_resumes_exactly(rare, 6, tmp_path / "stopped")
    expected = [line["weights"] for line in loss_lines(Path(each.output_dir))]
    found: list[dict[str, float]] = []
    for line in loss_lines(tmp_path / "rare"):
        by_step = line.get("weights_by_step", {task: [weight] for task, weight in line["weights"].items()})
        found += [dict(zip(by_step, weights, strict=True)) for weights in zip(*by_step.values(), strict=True)]
        assert found[-1] == line["weights"]
    assert found == expected


def test_fixed_weights_are_the_tasks(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "fixed")
    given["tasks"]["pos"]["loss_weight"] = 0.25
    train(Recipe.from_dict(given))
    line = loss_lines(tmp_path / "run")[-1]
    assert line["weights"] == {"ner": 1.0, "pos": 0.25, "sentiment": 1.0}
    assert "weights_by_step" not in line


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["famo", "uncertainty", pytest.param("log", marks=pytest.mark.long)])
def test_two_processes_weigh_losses_as_one_does(tmp_path: Path, strategy: str) -> None:
    given = recipe_values(tmp_path, strategy)
    for one, two in alone_and_in_two(tmp_path, given):
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-3)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)


@pytest.mark.parametrize(
    ("balancing", "told"),
    [
        ({"temperature": 3}, r"balancing\.temperature: only `strategy:` `dwa`, `smooth_maximum` reads it"),
        ({"strategy": "dwa", "learning_rate": 1e-3}, r"balancing\.learning_rate: only"),
        ({"strategy": "random", "period": 5}, r"balancing\.period: only `strategy:` `dwa` reads it"),
        ({"strategy": "uncertainity"}, r"Did you mean `uncertainty`"),
    ],
)
def test_keys_that_do_not_go_with_the_strategy_are_told(tmp_path: Path, balancing: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({**values(tmp_path), "balancing": balancing})
