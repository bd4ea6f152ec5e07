"""Sharing strategies in runs: trained, resumed exactly, scored, loaded and asked, on any layout and more processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    alone_and_in_two,
    assert_close,
    assert_resumes_exactly,
    loss_lines,
    moved,
    values,
    weights,
)

from nlp_mtl import Recipe, RecipeError, load, train
from nlp_mtl.run_evaluation import evaluate

EXPERTS = {"num_experts": 2, "expert_size": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "layer_mix": {},
    "task_embedding": {},
    "gate": {},
    "mmoe": EXPERTS,
    "ple": {**EXPERTS, "num_levels": 2},
    "towers": {"num_layers": 1},
    "lora": {"rank": 2},
}
every_strategy = pytest.mark.parametrize("strategy", SETTINGS)


def recipe_values(folder: Path, strategy: str, **training: Any) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 1.5, "eval_every": 3, "log_every": 1, "keep_last": 9, **training})
    given["sharing"] = {"strategy": strategy, **SETTINGS[strategy]}
    return given


def recipe_of(folder: Path, strategy: str, **training: Any) -> Recipe:
    return Recipe.from_dict(recipe_values(folder, strategy, **training))


@every_strategy
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, strategy: str) -> None:
    assert_resumes_exactly(recipe_of(tmp_path, strategy, dropout=0.1), 6, tmp_path / "stopped")


@every_strategy
@pytest.mark.parametrize("layout", ["padded", "auto"])
def test_what_is_learned_does_not_depend_on_how_a_step_is_cut(tmp_path: Path, strategy: str, layout: str) -> None:
    one = recipe_of(tmp_path, strategy)
    train(one)
    train(moved(one, tmp_path / "cut", max_tokens=64, layout=layout))
    assert_close(tmp_path / "run", tmp_path / "cut")


@every_strategy
def test_a_trained_model_scores_as_it_did_and_answers(tmp_path: Path, strategy: str) -> None:
    results = train(recipe_of(tmp_path, strategy))
    assert evaluate(tmp_path / "run") == json.loads(json.dumps(results["scores"]["test"]))
    answer = load(tmp_path / "run")("anna loves the film")
    assert {*answer} == {"ner", "pos", "sentiment"}


@every_strategy
def test_what_sharing_adds_learns_and_the_losses_fall(tmp_path: Path, strategy: str) -> None:
    train(recipe_of(tmp_path, strategy, num_epochs=4))
    lines = loss_lines(tmp_path / "run")
    assert sum(lines[-1]["losses"].values()) < sum(lines[0]["losses"].values())
    added = {name: value for name, value in weights(tmp_path / "run").items() if "_task" in name or "stitch" in name}
    assert added
    if strategy == "towers":  # they started alike
        one, *others = (value for name, value in added.items() if name.endswith("output.dense.weight"))
        assert not any(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("strategy", ["mmoe", "ple", "towers", "layer_mix"])
def test_tasks_gradients_are_told_apart_on_all_that_tasks_share(tmp_path: Path, strategy: str) -> None:
    given = recipe_values(tmp_path, strategy)
    given["gradients"] = {"strategy": "pcgrad"}
    train(Recipe.from_dict(given))
    assert "ner/pos" in loss_lines(tmp_path / "run")[-1]["gradient_cosines"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "gradients"),
    [
        pytest.param("mmoe", "sum", marks=pytest.mark.long),
        ("ple", "upgrad"),
        pytest.param("towers", "sum", marks=pytest.mark.long),
        ("lora", "sum"),
    ],
)
def test_two_processes_learn_what_one_does(tmp_path: Path, strategy: str, gradients: str) -> None:
    given = recipe_values(tmp_path, strategy)
    given["gradients"] = {"strategy": gradients}
    for one, two in alone_and_in_two(tmp_path, given):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)


def test_experts_that_are_shared_learn_by_the_gradients_strategy_above_a_frozen_encoder(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "mmoe", frozen_layers="encoder")
    given["gradients"] = {"strategy": "pcgrad"}
    train(Recipe.from_dict(given))
    assert loss_lines(tmp_path / "run")[-1]["gradient_cosines"]


@pytest.mark.parametrize(
    ("sharing", "key", "told"),
    [
        ({"strategy": "mmoe", "num_layers": 3}, "sharing.num_layers", "only `strategy:` `towers` reads it"),
        ({"strategy": "towers", "num_experts": 3}, "sharing.num_experts", "only `strategy:` `mmoe`, `ple` reads it"),
        ({"num_levels": 2}, "sharing.num_levels", "only `strategy:` `ple` reads it"),
        ({"cross_stitch": False}, "sharing.cross_stitch", "only `strategy:` `towers` reads it"),
        ({"strategy": "gate", "rank": 4}, "sharing.rank", "only `strategy:` `lora` reads it"),
        ({"strategy": "mixture"}, "sharing.strategy", "mixture"),
    ],
)
def test_keys_that_a_strategy_does_not_read_are_refused(
    tmp_path: Path, sharing: dict[str, Any], key: str, told: str
) -> None:
    given = {**values(tmp_path), "sharing": sharing}
    with pytest.raises(RecipeError) as failure:
        Recipe.from_dict(given)
    problems = {problem.path: problem.message for problem in failure.value.problems}
    assert told in problems[key]


@pytest.mark.parametrize(
    ("strategy", "training", "key"),
    [("lora", {"layout": "packed"}, "training.layout"), ("towers", {"compile": True}, "training.compile")],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, strategy: str, training: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError) as failure:
        recipe_of(tmp_path, strategy, **training)
    assert any(problem.path == key and strategy in problem.message for problem in failure.value.problems)
