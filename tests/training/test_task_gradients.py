"""The tasks' gradients told apart: rows of a step, runs on any layout, resumed in the same bits, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_steps import STRATEGIES, Step
from tiny_runs import (
    alone_and_in_two,
    assert_resumes_exactly,
    loss_lines,
    moved,
    values,
)
from trained import run

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build import task_gradients
from nlp_mtl.errors import ModelError
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.gradients import shared_parameters


def recipe_values(folder: Path, strategy: str, **training: Any) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 1.5, "eval_every": 3, "log_every": 1, "keep_last": 9, **training})
    return {**given, "gradients": {"strategy": strategy} if strategy != "sum" else {"measure_every": 1}}


def recipe_of(folder: Path, strategy: str, **training: Any) -> Recipe:
    return Recipe.from_dict(recipe_values(folder, strategy, **training))


@pytest.mark.parametrize("training", [{}, {"layout": "padded"}, {"max_tokens": 64}], ids=str)
def test_rows_are_the_gradients_of_each_tasks_own_loss(tmp_path: Path, training: dict[str, Any]) -> None:
    step = Step(tmp_path, "pcgrad", batch_size=24, **training)
    step.compute()
    (rows,) = step.gradients._rows.values()
    expected, heads = step.one_by_one()
    shared = [p for _, p in shared_parameters(step.model)]
    for row, one in zip(rows, expected, strict=True):
        found = torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, shared, strict=True)]
        )
        assert one.any()
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-6)
    step = Step(tmp_path / "again", "pcgrad", batch_size=24, **training)
    found_heads = {name: grad for name, grad in step.combined().items() if name.startswith("heads.")}
    assert found_heads.keys() == heads.keys()
    for name, grad in found_heads.items():
        torch.testing.assert_close(grad, heads[name], rtol=1e-4, atol=1e-6, msg=name)


def test_micro_batches_hold_rows_of_the_same_tasks_and_every_row_once(tmp_path: Path) -> None:
    step = Step(tmp_path, "pcgrad", batch_size=24, max_tokens=64)
    plain = run(tmp_path / "plain", batch_size=24, max_tokens=64).data[0]
    assert step.batches.counts == plain.counts
    sets = [{name for name, rows in one.tasks.items() if len(rows.rows)} for one in step.batches.micro_batches]
    assert all(one in ({"ner", "pos"}, {"sentiment"}) for one in sets)
    assert len(sets) > 2
    texts = [sum(len(one.inputs["lengths"]) for one in given.micro_batches) for given in (step.batches, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("strategy", [*STRATEGIES, "sum"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, strategy: str) -> None:
    recipe = recipe_of(tmp_path, strategy, dropout=0.1)
    assert_resumes_exactly(recipe, 6, tmp_path / "stopped")


@pytest.mark.parametrize("strategy", ["pcgrad", "gradvac", "nash_mtl", "gradnorm", "sum"])
def test_the_update_does_not_depend_on_how_a_step_is_cut(tmp_path: Path, strategy: str) -> None:
    one = recipe_of(tmp_path, strategy)
    train(one)
    train(moved(one, tmp_path / "cut", max_tokens=64))
    lines = zip(loss_lines(Path(one.output_dir)), loss_lines(tmp_path / "cut"), strict=True)
    for whole, cut in lines:
        for key in ("losses", "gradient_weights", "gradient_cosines"):
            assert cut[key] == pytest.approx(whole[key], rel=2e-3, abs=2e-4)
        assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=2e-3)


def test_gradients_that_are_told_apart_and_added_up_are_those_of_a_plain_run(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "sum", num_epochs=1)
    given["gradients"] = {"measure_every": 2}
    train(Recipe.from_dict(given))
    given |= {"output_dir": str(tmp_path / "plain"), "gradients": {}}
    train(Recipe.from_dict(given))
    for measured, plain in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "plain"), strict=True):
        assert measured["losses"] == pytest.approx(plain["losses"], rel=1e-3)
        assert measured["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
        assert ("gradient_cosines" in measured) == (measured["step"] % 2 == 1)  # steps are counted from 1 there
        assert measured.get("gradient_weights") in (None, {"ner": 1, "pos": 1, "sentiment": 1})
        assert all(-1 <= cosine <= 1 for cosine in measured.get("gradient_cosines", {}).values())
        assert "gradient_cosines" not in plain


def test_what_was_measured_is_told_once_and_a_resumed_run_tells_it_too(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "sum", num_epochs=3, log_every=5, eval_every=2)
    given["gradients"] = {"measure_every": 7}
    recipe = Recipe.from_dict(given)
    train(recipe)
    told = [line["step"] for line in loss_lines(tmp_path / "run") if "gradient_cosines" in line]
    assert told == [5, 10, 15]  # of the steps 1, 8 and 15
    # After step 8 it has measured, and has not told yet.
    assert_resumes_exactly(moved(recipe, tmp_path / "whole"), 8, tmp_path / "stopped")


@pytest.mark.slow
def test_processes_with_different_numbers_of_micro_batches_do_not_wait_for_each_other(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "pcgrad", batch_size=4)  # often one set of tasks is more than half of a step
    given["gradients"] |= {"measure_every": 2, "look_ahead": True}
    given["balancing"] = {"strategy": "famo"}
    for one, two in alone_and_in_two(tmp_path, given):
        assert two["losses"] == pytest.approx(one["losses"], rel=2e-2, abs=2e-3)


def test_cosines_of_chosen_layers_are_those_of_their_gradients(tmp_path: Path) -> None:
    found = {}
    for name, layers in {"all": [], "embeddings": [0], "layers": [1, 2]}.items():
        given = recipe_values(tmp_path, "sum", max_steps=1)
        given |= {"output_dir": str(tmp_path / name), "gradients": {"measure_every": 1, "measured_layers": layers}}
        train(Recipe.from_dict(given))
        found[name] = loss_lines(tmp_path / name)[0]["gradient_cosines"]
    step = Step(tmp_path / "by hand", "pcgrad")
    rows, _ = step.one_by_one()
    names = [(n, p.numel()) for n, p in shared_parameters(step.model)]
    is_embedding = torch.cat([torch.full((size,), "embeddings" in name) for name, size in names])
    for name, chosen in (("all", is_embedding | True), ("embeddings", is_embedding), ("layers", ~is_embedding)):
        ner, pos = rows[0][chosen], rows[1][chosen]
        assert found[name]["ner/pos"] == pytest.approx(torch.cosine_similarity(ner, pos, dim=0).item(), abs=1e-4)


def test_a_layer_that_the_encoder_does_not_have_is_told_before_anything_is_written(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "pcgrad")
    given["gradients"]["measured_layers"] = [7]
    with pytest.raises(ModelError, match=r"measured_layers: `7` is no layer .*; there are `0`, `1`"):
        train(Recipe.from_dict(given))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("cores")
def test_two_threads_tell_gradients_apart_as_one_does(tmp_path: Path) -> None:
    two = recipe_of(tmp_path, "aligned_mtl")
    train(two)
    torch.set_num_threads(1)
    train(moved(two, tmp_path / "one"))
    for one, other in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "one"), strict=True):
        assert one["gradient_weights"] == pytest.approx(other["gradient_weights"], rel=1e-3)
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["pcgrad", "gradnorm", *(pytest.param(name, marks=pytest.mark.long) for name in ("gradvac", "sum"))]
)
def test_two_processes_end_where_one_does(tmp_path: Path, strategy: str) -> None:
    given = recipe_values(tmp_path, strategy)
    for one, two in alone_and_in_two(tmp_path, given):
        for key in ("losses", "gradient_weights", "gradient_cosines"):
            assert two[key] == pytest.approx(one[key], rel=2e-3, abs=2e-4)


def test_a_task_without_a_row_or_a_weight_has_no_say(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "mgda", batch_size=1, max_steps=12)
    given["tasks"]["pos"]["loss_weight"] = 0
    train(Recipe.from_dict(given))
    told = loss_lines(tmp_path / "run")
    assert all(not line["gradient_cosines"] for line in told)  # steps of one row: none, or ner and pos
    given |= {"output_dir": str(tmp_path / "more"), "training": {**given["training"], "batch_size": 8}}
    train(Recipe.from_dict(given))
    assert {pair for line in loss_lines(tmp_path / "more") for pair in line["gradient_cosines"]} == {"ner/sentiment"}


@pytest.mark.parametrize(("strategy", "length"), [("nash_mtl", 0.0), ("fairgrad", -1 / 3), ("upgrad", 1.0)])
def test_a_task_that_is_alone_in_a_step_is_weighed_by_the_same_formula(
    tmp_path: Path, strategy: str, length: float
) -> None:
    step = Step(tmp_path, strategy, batch_size=1)
    while sum(map(bool, step.batches.counts.values())) > 1:
        step.go_to(step.step + 1)
    gradient = sum(step.one_by_one()[0])
    assert isinstance(gradient, torch.Tensor)
    step.go_to(step.step)
    assert float(step.update().norm()) == pytest.approx(float(gradient.norm()) ** length, rel=1e-3)


def test_layers_that_run_again_in_the_backward_pass_do_so_for_each_task(tmp_path: Path) -> None:
    one = recipe_of(tmp_path, "upgrad")
    train(one)
    train(moved(one, tmp_path / "again", gradient_checkpointing=True))
    for line, other in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "again"), strict=True):
        assert other["gradient_weights"] == pytest.approx(line["gradient_weights"], rel=1e-3)


def test_memory_is_told_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(recipe_of(tmp_path, "pcgrad", max_steps=1))
    assert "The gradients of 3 tasks on 0.0 million shared parameters take 0.00 GB" in caplog.text


def test_a_plain_recipe_tells_no_gradients_apart(tmp_path: Path) -> None:
    a_run = run(tmp_path)
    assert isinstance(a_run.model, MultiTaskModel)
    assert task_gradients(a_run.recipe, a_run.model, a_run.tasks) is None
    assert a_run.data.one_set_every is None


@pytest.mark.parametrize("frozen", [2, "encoder"])
def test_an_encoder_of_which_all_layers_are_frozen_is_refused(tmp_path: Path, frozen: int | str) -> None:
    with pytest.raises(RecipeError, match=r"training\.frozen_layers: tasks share nothing that learns"):
        train(recipe_of(tmp_path, "pcgrad", frozen_layers=frozen))
    assert not (tmp_path / "run").exists()


def test_a_pooler_that_text_tasks_share_is_enough_to_tell_gradients_apart(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "pcgrad", frozen_layers="encoder", max_steps=2)
    given["tasks"]["again"] = given["tasks"]["sentiment"]
    train(Recipe.from_dict(given))
    assert "sentiment/again" in loss_lines(tmp_path / "run")[-1]["gradient_cosines"]


def test_a_line_has_the_mean_cosines_and_the_weights_of_all_steps_since_the_one_before(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, "pcgrad", num_epochs=1, max_steps=6, log_every=1)
    train(Recipe.from_dict(given))
    given |= {"output_dir": str(tmp_path / "rarer"), "training": {**given["training"], "log_every": 3}}
    train(Recipe.from_dict(given))
    each = loss_lines(tmp_path / "run")
    for place, line in enumerate(loss_lines(tmp_path / "rarer")):
        three = each[3 * place : 3 * place + 3]
        for pair, mean in line["gradient_cosines"].items():
            found = [one["gradient_cosines"][pair] for one in three if pair in one["gradient_cosines"]]
            assert mean == pytest.approx(sum(found) / len(found))
        for task, weights in line["gradient_weights_by_step"].items():
            assert weights == [one["gradient_weights"][task] for one in three]
            assert weights[-1] == line["gradient_weights"][task]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gradients": {"strategy": "pcgrad", "c": 0.3}}, r"gradients\.c: only `strategy:` `cagrad` reads it"),
        (
            {"gradients": {"strategy": "cagrad", "measure_every": 5}},
            r"gradients\.measure_every: only `strategy:` `sum`",
        ),
        ({"gradients": {"alpha": 1.0}}, r"gradients\.alpha: only `strategy:` `fairgrad`, `gradnorm`"),
        ({"gradients": {"strategy": "pc_grad"}}, r"Did you mean `pcgrad`"),
        ({"gradients": {"strategy": "mgda"}, "training": {"compile": True}}, r"training\.compile: compiled layers"),
        ({"gradients": {"strategy": "mgda"}, "training": {"unfreeze_every": 3}}, r"training\.unfreeze_every: layers"),
        ({"gradients": {"look_ahead": 1}}, r"gradients\.look_ahead: say in which steps"),
        ({"gradients": {"strategy": "mgda"}, "training": {"compile": "yes"}}, r"training\.compile: compiled layers"),
    ],
)
def test_keys_that_do_not_go_with_the_strategy_are_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    given = values(tmp_path)
    given["training"] |= changes.pop("training", {})
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({**given, **changes})
