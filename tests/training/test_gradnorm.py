import json

import numpy as np
import pytest
import torch

from nlp_mtl.training.gradnorm import GradNorm


def test_gradients_of_all_lengths_become_equally_long_where_tasks_learn_alike() -> None:
    norms = [4.0, 1.0, 0.5]
    weights = GradNorm(3, learning_rate=0.01)
    for _ in range(3000):
        weights.update([0, 1, 2], norms, [1.0, 2.0, 3.0])
    lengths = weights.weights.detach() * torch.tensor(norms)
    assert lengths.tolist() == pytest.approx([lengths.mean().item()] * 3, rel=0.1)
    assert weights.weights.sum().item() == pytest.approx(3)


def test_a_task_that_learns_more_slowly_gets_the_longer_gradient_the_more_the_larger_alpha() -> None:
    found = []
    for alpha in (0.0, 0.5, 1.5):
        weights = GradNorm(2, alpha, learning_rate=0.01)
        weights.update([0, 1], [1.0, 1.0], [1.0, 1.0])
        for _ in range(3000):
            weights.update([0, 1], [1.0, 1.0], [0.9, 0.6])  # the first has lost a tenth of its loss, the second more
        first, second = weights.weights.tolist()
        # The fixed point of w1 = mean (0.9 / 0.75)^alpha, w2 = mean (0.6 / 0.75)^alpha, up to a common factor.
        assert first / second == pytest.approx(1.5**alpha, rel=0.05)
        found.append(first / second)
    assert found == sorted(found)


@pytest.mark.parametrize("learning_rate", [0.025, 0.1])
def test_steps_are_those_of_adam_on_the_papers_loss(learning_rate: float) -> None:
    draw = np.random.default_rng(0)
    weights = GradNorm(3, alpha=1.5, learning_rate=learning_rate)
    expected = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    adam = torch.optim.Adam([expected], lr=learning_rate)
    first = torch.tensor([2.0, 0.9, 1.3], dtype=torch.float64)
    for step in range(6):
        norms = torch.tensor(draw.uniform(0.2, 3, 3))
        losses = first if step == 0 else torch.tensor(draw.uniform(0.1, 2, 3))
        rates = losses / first
        weighted = expected * norms
        wanted = (weighted.mean() * (rates / rates.mean()) ** 1.5).detach()
        adam.zero_grad()
        # In units of the mean length: Adam does not mind, as long as it is the same in all steps.
        ((weighted - wanted).abs().sum() / norms.mean()).backward()
        adam.step()
        with torch.no_grad():
            expected.mul_(3 / expected.sum())
        weights.update([0, 1, 2], norms.tolist(), losses.tolist())
        torch.testing.assert_close(weights.weights.detach(), expected.detach(), atol=1e-9, rtol=1e-9)


def test_a_task_that_is_not_there_keeps_its_share() -> None:
    weights = GradNorm(3, learning_rate=0.1)
    weights.update([0, 2], [5.0, 1.0], [1.0, float("nan"), 1.0])
    first, absent, last = weights.weights.tolist()
    assert first < absent < last


def test_a_task_that_is_gone_is_not_moved_by_what_it_learned_before() -> None:
    weights = GradNorm(3, learning_rate=0.1)
    for _ in range(2):  # the length of the last two is the same, and so is their way
        weights.update([0, 1, 2], [5.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    before = weights.state()
    weights.update([0, 2], [5.0, 1.0], [1.0, float("nan"), 1.0])
    after = weights.state()
    for key in ("exp_avg", "exp_avg_sq"):
        assert after[key][1] == before[key][1]
        assert after[key][2] != before[key][2]
    assert after["weights"][2] / after["weights"][1] > 1.01  # they are scaled alike, and one of them has moved


def test_one_that_goes_on_from_anothers_state_is_the_same() -> None:
    whole, part = GradNorm(2), GradNorm(2)
    steps = [([0, 1], [1.0, 3.0], [2.0, 1.0]), ([1], [3.0], [0.0, 0.9]), ([0, 1], [0.5, 2.0], [1.5, 0.8])]
    for number, step in enumerate(steps):
        if number == 2:
            fresh = GradNorm(2)
            fresh.restore(json.loads(json.dumps(part.state())))
            part = fresh
        whole.update(*step)
        part.update(*step)
    assert torch.equal(whole.weights, part.weights)
