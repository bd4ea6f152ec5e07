"""Weights of losses against the losses that their papers define, by autograd."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlp_mtl.tasks import Task
from nlp_mtl.training.balancing import LEARNED, Balancer
from nlp_mtl.training.loss_weights import (
    averaging_weights,
    famo_gradient,
    famo_weights,
    log_weights,
    maximum_weights,
    random_weights,
)

examples = settings(max_examples=60, deadline=None)
losses_of = st.lists(st.floats(0.01, 20), min_size=1, max_size=6).map(torch.tensor)
TASKS = [
    Task("a", "text-classification", ("x", "y"), "accuracy", 1.0),
    Task("b", "text-classification", ("x", "y", "z"), "accuracy", 0.5),
    Task("c", "token-classification", tuple("abcdefg"), "accuracy", 2.0),
]
ALL = torch.ones(3, dtype=torch.bool)


def gradient_of(total: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """What a total loss makes each task's loss count."""
    given_losses = losses.clone().requires_grad_()
    total(given_losses).backward()
    assert given_losses.grad is not None
    return given_losses.grad


@examples
@given(losses_of)
def test_log_weights_are_those_of_the_sum_of_logarithms(losses: Tensor) -> None:
    torch.testing.assert_close(log_weights(losses, losses > 0), gradient_of(lambda one: one.log().sum(), losses))


@examples
@given(losses_of, st.floats(0.1, 10))
def test_smooth_maximum_weights_are_those_of_the_scaled_log_sum_exp(losses: Tensor, temperature: float) -> None:
    expected = gradient_of(lambda one: temperature * torch.logsumexp(one / temperature, 0), losses)
    torch.testing.assert_close(maximum_weights(losses, losses > 0, temperature), expected)


def test_the_maximum_takes_the_largest_loss_that_is_there_alone() -> None:
    losses = torch.tensor([1.0, 9.0, 3.0])
    assert maximum_weights(losses, ALL, 0).tolist() == [0, 1, 0]
    assert maximum_weights(losses, torch.tensor([True, False, True]), 0).tolist() == [0, 0, 1]
    assert maximum_weights(losses, torch.tensor([True, False, True]), 1.0)[1] == 0


def test_dynamic_weight_average_is_the_papers() -> None:
    older, newer = torch.tensor([2.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 3.0])
    ratios = [0.5, 1.0, 0.75]
    raw = [math.exp(ratio / 2) for ratio in ratios]
    assert averaging_weights(older, newer, 2.0).tolist() == pytest.approx([3 * one / sum(raw) for one in raw])
    unseen = torch.full((3,), math.nan)
    assert averaging_weights(unseen, newer, 2.0).tolist() == pytest.approx([1, 1, 1])


@examples
@given(st.integers(1, 8), st.integers(0, 10_000), st.integers(0, 10_000))
def test_random_weights_are_one_on_average_and_a_function_of_seed_and_step(count: int, seed: int, step: int) -> None:
    weights = random_weights(count, seed, step)
    assert float(weights.mean()) == pytest.approx(1)
    assert (weights > 0).all()
    assert torch.equal(weights, random_weights(count, seed, step))
    assert count == 1 or not torch.equal(weights, random_weights(count, seed, step + 1))


def test_random_weights_spread_as_the_softmax_of_normal_numbers() -> None:
    drawn = torch.stack([random_weights(3, 0, step) for step in range(4000)])
    logs = drawn.log()
    differences = logs[:, 0] - logs[:, 1]  # of two standard normal numbers
    assert float(differences.mean()) == pytest.approx(0, abs=0.1)
    assert float(differences.std()) == pytest.approx(math.sqrt(2), rel=0.05)


@examples
@given(losses_of)
def test_famo_weights_are_those_of_its_loss(losses: Tensor) -> None:
    logits = torch.linspace(-1, 1, len(losses))
    shares = torch.softmax(logits, 0)
    scale = (shares / losses).sum()  # detached in the authors' code
    expected = gradient_of(lambda one: (one.log() * shares / scale).sum(), losses)
    found = famo_weights(logits, losses, losses > 0)
    torch.testing.assert_close(found, expected)
    assert float(found.sum()) == pytest.approx(1)


@examples
@given(losses_of, st.floats(0.5, 1.5))
def test_famo_learns_from_how_much_each_loss_fell(losses: Tensor, factor: float) -> None:
    following = losses * torch.linspace(factor, 1, len(losses))
    logits = torch.linspace(-1, 1, len(losses)).requires_grad_()
    fell = losses.log() - following.log()
    (expected,) = torch.autograd.grad(torch.softmax(logits, 0), logits, grad_outputs=fell)
    torch.testing.assert_close(famo_gradient(logits.detach(), losses, following, losses > 0), expected)


@pytest.mark.parametrize("strategy", ["uncertainty", "imtl_l"])
def test_learned_weights_follow_the_gradient_of_their_papers_loss(strategy: str) -> None:
    torch.manual_seed(0)
    losses = [torch.rand(3) * 3 for _ in range(25)]
    balancer = Balancer(TASKS, strategy, learning_rate=0.05)
    fixed = torch.tensor([task.loss_weight for task in TASKS])
    scales = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([scales], lr=0.05)
    for step, loss in enumerate(losses):
        expected = fixed * torch.exp(-scales if strategy == "uncertainty" else scales).detach()
        torch.testing.assert_close(balancer.weights(step, ALL, None), expected)
        if strategy == "uncertainty":  # Kendall et al. 2018, s being log of the variance
            total = (torch.exp(-scales) * loss + scales / 2).sum()
        else:  # Liu et al. 2021
            total = (torch.exp(scales) * loss - scales).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        balancer.update(step, loss, ALL)


@pytest.mark.parametrize(("strategy", "rest"), [("uncertainty", 0.5), ("imtl_l", 1.0)])
def test_learned_weights_make_losses_equal_and_leave_loss_weights_their_say(strategy: str, rest: float) -> None:
    balancer = Balancer(TASKS, strategy, learning_rate=0.02)
    losses = torch.tensor([0.2, 1.0, 5.0])
    for step in range(3000):
        balancer.update(step, losses, ALL)
    expected = rest * torch.tensor([task.loss_weight for task in TASKS])
    torch.testing.assert_close(balancer.weights(0, ALL) * losses, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("scale", ["none", "log_classes"])
@pytest.mark.parametrize("strategy", ["log", "famo"])
def test_a_loss_weight_is_a_factor_beside_what_logarithms_of_losses_say(strategy: str, scale: str) -> None:
    losses, following = torch.tensor([0.2, 1.0, 5.0]), torch.tensor([0.1, 0.9, 4.0])
    found = []
    for weights in ([1.0, 1.0, 1.0], [3.0, 0.5, 2.0]):
        tasks = [replace(task, loss_weight=weight) for task, weight in zip(TASKS, weights, strict=True)]
        balancer = Balancer(tasks, strategy, scale=scale)
        for step in range(5):
            balancer.update(step, losses, ALL, following)
        found.append(balancer.weights(5, ALL, losses))
    torch.testing.assert_close(found[1] / found[0], torch.tensor([3.0, 0.5, 2.0]))


def test_a_task_without_a_loss_has_no_weight_among_logarithms() -> None:
    present = torch.tensor([True, False, True])
    assert log_weights(torch.tensor([0.5, 0.0, 2.0]), present).tolist() == [2.0, 0.0, 0.5]


@pytest.mark.parametrize("strategy", ["fixed", *LEARNED, "dwa", "random", "log", "maximum", "smooth_maximum"])
def test_a_task_that_is_not_there_changes_nothing_of_what_is_learned_of_it(strategy: str) -> None:
    balancer = Balancer(TASKS, strategy, period=2)
    present = torch.tensor([True, False, True])
    for step in range(6):
        losses = torch.tensor([1.0 + step, 0.0, 2.0])
        weights = balancer.weights(step, present, losses if balancer.reads_losses else None)
        assert torch.isfinite(weights).all()
        balancer.update(step, losses, present, losses * 0.9 if balancer.reads_next_losses else None)
    if balancer.learned is not None:
        assert float(balancer.learned.detach()[1]) == 0


@pytest.mark.parametrize("strategy", [*LEARNED])
def test_a_task_that_is_gone_is_not_moved_by_what_it_learned_before(strategy: str) -> None:
    balancer, losses = Balancer(TASKS, strategy), torch.tensor([0.3, 3.0, 2.0])
    for step in range(2):
        balancer.update(step, losses, ALL, losses * torch.tensor([0.9, 0.5, 0.7]))
    before = balancer.state()
    present = torch.tensor([True, False, True])
    balancer.update(2, losses, present, losses * 0.8)
    after = balancer.state()
    for key in ("learned", "exp_avg", "exp_avg_sq"):
        assert after[key][1] == before[key][1] != 0
        assert after[key][0] != before[key][0]


@pytest.mark.parametrize("strategy", [*LEARNED, "log", "maximum", "smooth_maximum"])
def test_a_task_that_counts_nothing_takes_nothing_from_the_others(strategy: str) -> None:
    ones = [replace(task, loss_weight=1.0) for task in TASKS]
    scored_only = [ones[0], replace(ones[1], loss_weight=0.0), ones[2]]
    losses, following = torch.tensor([2.0, 9.0, 0.5]), torch.tensor([1.0, 9.0, 0.4])
    found = []
    for tasks, present in ((scored_only, ALL), (ones, torch.tensor([True, False, True]))):
        balancer = Balancer(tasks, strategy, learning_rate=0.1 if strategy in LEARNED else None)
        for step in range(4):
            weights = balancer.weights(step, present, losses)
            balancer.update(step, losses, present, following)
        found.append(weights[[0, 2]])
    torch.testing.assert_close(*found)


def test_losses_are_scaled_by_what_guessing_loses() -> None:
    balancer = Balancer(TASKS, scale="log_classes")
    expected = [1 / math.log(2), 0.5 / math.log(3), 2 / math.log(7)]
    assert balancer.weights(0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("strategy", [*LEARNED, "dwa"])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_balancer_goes_on_from_its_state_as_if_it_had_not_stopped(strategy: str, stop: int) -> None:

    torch.manual_seed(0)
    losses = torch.rand(15, 3) + 0.1
    whole = Balancer(TASKS, strategy, period=3)
    parts = Balancer(TASKS, strategy, period=3)
    for step, loss in enumerate(losses):
        if step == stop:
            fresh = Balancer(TASKS, strategy, period=3)
            fresh.restore(json.loads(json.dumps(parts.state())))
            parts = fresh
        for one in (whole, parts):
            one.weights(step, ALL, loss)
            one.update(step, loss, ALL, loss * 0.8)
    assert torch.equal(whole.weights(15, ALL, losses[0]), parts.weights(15, ALL, losses[0]))
    assert whole.state() == parts.state()
