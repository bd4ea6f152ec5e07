"""The tasks' gradients told apart: in a step what torchjd would do, in runs on any layout, resumed in the same bits."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from tiny_runs import (
    assert_resumes_exactly,
    finish,
    loss_lines,
    moved,
    start,
    values,
    write_yaml,
)
from torch import Tensor
from torchjd.aggregation import (
    IMTLG,
    MGDA,
    Aggregator,
    AlignedMTL,
    CAGrad,
    FairGrad,
    GradVac,
    NashMTL,
    PCGrad,
    UPGrad,
)
from torchjd.linalg import QuadprogProjector
from trained import run

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build import task_gradients
from nlp_mtl.errors import ModelError
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import GradientsSpec
from nlp_mtl.training.balancing import summed_loss
from nlp_mtl.training.gradients import TaskGradients, shared_parameters

STRATEGIES = [one for one in get_args(GradientsSpec.model_fields["strategy"].annotation) if one != "sum"]


def recipe_values(folder: Path, strategy: str, **training: Any) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 1.5, "eval_every": 3, "log_every": 1, "keep_last": 9, **training})
    return {**given, "gradients": {"strategy": strategy} if strategy != "sum" else {"measure_every": 1}}


def recipe_of(folder: Path, strategy: str, **training: Any) -> Recipe:
    return Recipe.from_dict(recipe_values(folder, strategy, **training))


class Step:
    """The first step of a tiny run, and the gradients of its tasks."""

    def __init__(
        self, folder: Path, strategy: str, *, signs: Sequence[float] = (1, 1, 1), options: Any = None, **training: Any
    ) -> None:
        """``signs``: of the tasks' losses; -1 turns a gradient round, so that it conflicts with what it agreed with."""
        a_run = run(folder, **training)
        self.model, self.tasks, self.data = a_run.model, a_run.tasks, a_run.data
        self.gradients = TaskGradients(self.model, self.tasks, strategy, **(options or {}))
        self.signs = signs
        self.go_to(0)

    def go_to(self, step: int) -> None:
        """Another step, of the same model."""
        self.data.one_set_every = 1
        self.step, self.batches = step, self.data[step]

    def compute(self, precision: str = "no") -> Tensor:
        accelerator = Accelerator()
        self.model.to(accelerator.device)
        weights = torch.tensor(self.signs, dtype=torch.float32, device=accelerator.device)
        return self.gradients.forward_backward(self.model, self.batches, weights, accelerator, precision)

    def combined(self, precision: str = "no") -> dict[str, Tensor]:
        self.model.zero_grad()
        losses = self.compute(precision)
        self.gradients.combine(self.step, self.batches.counts, losses, Accelerator())
        return {name: p.grad.cpu() for name, p in self.model.named_parameters() if p.grad is not None}

    def update(self, precision: str = "no") -> Tensor:
        """[shared parameters] What the tasks' gradients become."""
        found = self.combined(precision)
        return torch.cat([found[name].flatten() for name, _ in shared_parameters(self.model)])

    def one_by_one(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradient of each task's loss on what is shared (flat), and those of heads, by autograd."""
        self.data.one_set_every = None
        batches = self.data[self.step]
        rows, heads = [], {}
        for task, sign in zip(self.tasks, self.signs, strict=True):
            self.model.zero_grad()
            for micro_batch in send_to_device(batches.micro_batches, next(self.model.parameters()).device):
                chosen = micro_batch.tasks[task.name]
                logits = self.model(**micro_batch.inputs, rows={task.name: chosen.rows})[task.name]
                (sign * summed_loss(logits, chosen) / batches.counts[task.name]).backward()
            shared = [p for _, p in shared_parameters(self.model)]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
            own = self.model.head(task.name).named_parameters()
            heads |= {f"heads.{task.name}_head.{name}": p.grad.cpu() for name, p in own if p.grad is not None}
        self.model.zero_grad()
        return rows, heads


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


ORACLES: dict[str, Callable[[], Aggregator]] = {
    "imtl_g": IMTLG,
    "aligned_mtl": AlignedMTL,
    "upgrad": lambda: UPGrad(projector=QuadprogProjector(norm_eps=0, reg_eps=1e-9)),
    "mgda": lambda: MGDA(epsilon=1e-9, max_iters=50_000),
    "cagrad": lambda: CAGrad(c=0.4, norm_eps=0),
    "fairgrad": lambda: FairGrad(alpha=2.0),
    "nash_mtl": lambda: NashMTL(n_tasks=3, max_norm=0.0, optim_niter=100),
    "pcgrad": PCGrad,
    "gradvac": lambda: GradVac(beta=0.3, eps=0),
}
OPTIONS = {"cagrad": {"c": 0.4}, "fairgrad": {"alpha": 2.0}, "gradvac": {"beta": 0.3}}
# Of the others torchjd's update is that of a mean, ours that of a sum.
SUMS = ("fairgrad", "nash_mtl", "pcgrad", "gradvac")


@contextmanager
def our_order(step: int, count: int) -> Iterator[None]:
    """Within it torchjd goes through tasks in the order in which a step of ours does."""
    order, asked = np.random.default_rng((0, step)), itertools.count()

    def permutation(size: int) -> Tensor:
        found, task = order.permutation(count), next(asked)
        if size < count:  # GradVac's are places among the other tasks
            found = np.array([place - (place > task) for place in found if place != task])
        return torch.from_numpy(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", permutation)
        yield


def assert_same_update(step: Step, oracle: Aggregator, precision: str = "no") -> None:
    strategy = step.gradients.strategy
    found = step.update(precision).double()
    rows = torch.stack(step.one_by_one()[0]).double()
    with our_order(step.step, len(rows)):
        expected = oracle(rows) * (1 if strategy in SUMS else len(rows))
    # The tasks do conflict, so the method has something to do.
    assert (rows @ rows.T).min() < 0
    assert (expected - rows.sum(dim=0)).norm() > 0.01 * expected.norm()
    assert (found - expected).norm() < (0.05 if precision == "bf16" else 1e-4) * expected.norm()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP:UserWarning")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("strategy", ORACLES)
def test_the_gradient_of_a_step_is_that_of_torchjd(tmp_path: Path, strategy: str, precision: str) -> None:
    step = Step(tmp_path, strategy, signs=(1, -1, 1), options=OPTIONS.get(strategy), batch_size=24)
    assert_same_update(step, ORACLES[strategy](), precision)


def test_every_strategy_that_torchjd_has_is_held_against_it() -> None:
    assert {*ORACLES} == {*STRATEGIES} - {"gradnorm"}


@pytest.mark.parametrize("strategy", ["pcgrad", "gradvac"])
def test_what_a_strategy_draws_and_remembers_from_step_to_step_is_as_in_torchjd(tmp_path: Path, strategy: str) -> None:
    step = Step(tmp_path, strategy, signs=(1, -1, 1), options=OPTIONS.get(strategy), batch_size=16)
    oracle = ORACLES[strategy]()
    for number in range(5):
        step.go_to(number)
        assert_same_update(step, oracle)
    assert (np.abs(step.gradients.targets).max() > 0.05) == (strategy == "gradvac")


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
    train(Recipe.from_dict(given))
    given["output_dir"] = str(tmp_path / "two")
    code, _, errors = finish(start("train", write_yaml(tmp_path, given), processes=2))
    assert code == 0, errors
    for one, two in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "two"), strict=True):
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
@pytest.mark.parametrize("strategy", ["pcgrad", "gradvac", "gradnorm", "sum"])
def test_two_processes_end_where_one_does(tmp_path: Path, strategy: str) -> None:
    given = recipe_values(tmp_path, strategy)
    train(Recipe.from_dict(given))
    given["output_dir"] = str(tmp_path / "two")
    code, _, errors = finish(start("train", write_yaml(tmp_path, given), processes=2))
    assert code == 0, errors
    for one, two in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "two"), strict=True):
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


def test_an_encoder_of_which_all_layers_are_frozen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.frozen_layers: tasks share nothing that learns"):
        train(recipe_of(tmp_path, "pcgrad", frozen_layers=2))
    assert not (tmp_path / "run").exists()


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
        (
            {"gradients": {"measure_every": 3}, "training": {"frozen_layers": "encoder"}},
            r"frozen_layers: tasks",
        ),
    ],
)
def test_keys_that_do_not_go_with_the_strategy_are_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    given = values(tmp_path)
    given["training"] |= changes.pop("training", {})
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({**given, **changes})
