"""How far answers are from a teacher's: against torch, and by what their gradients have to be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional

from nlp_mtl.task_types import KINDS
from nlp_mtl.task_types.losses import indicator_divergences, label_divergences

SEEDS, TEMPERATURES = st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0, 4.0])


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return (3 * torch.randn(2, 5, 4)).requires_grad_(), 3 * torch.randn(2, 5, 4)


@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_the_gradient_is_that_of_the_cross_entropy_with_soft_targets(seed: int, temperature: float) -> None:
    logits, teacher = drawn(seed)
    found = torch.autograd.grad(label_divergences(logits, teacher, temperature).sum(), logits)[0]
    soft = (teacher / temperature).softmax(-1).flatten(0, 1)
    loss = functional.cross_entropy((logits / temperature).flatten(0, 1), soft, reduction="sum") * temperature**2
    torch.testing.assert_close(found, torch.autograd.grad(loss, logits)[0], atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(SEEDS, TEMPERATURES)
def test_of_several_labels_it_is_the_divergence_of_each_for_itself(seed: int, temperature: float) -> None:
    logits, teacher = (one.detach().double() for one in drawn(seed))
    expected = kl_divergence(Bernoulli(logits=teacher / temperature), Bernoulli(logits=logits / temperature)).sum(-1)
    found = indicator_divergences(logits, teacher, temperature)
    torch.testing.assert_close(found.double(), expected * temperature**2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("type", sorted(KINDS))
def test_equal_answers_differ_by_nothing_and_others_by_more(type: str) -> None:
    logits, _ = drawn(0)
    divergence = KINDS[type].divergence
    same = divergence(logits, logits.detach(), 2.0)
    assert same.shape == (2, 5)
    torch.testing.assert_close(same, torch.zeros(2, 5), atol=1e-5, rtol=0)
    further = [
        divergence(logits, logits.detach() + distance * torch.tensor([1.0, -1, 2, 0]), 1.0) for distance in (1, 2)
    ]
    assert (further[0] > 0).all()
    assert (further[1] > further[0]).all()


@pytest.mark.parametrize("type", sorted(KINDS))
def test_certain_teachers_and_students_are_finite(type: str) -> None:
    logits = torch.tensor([[90.0, -90.0, 0.0, -300.0]], requires_grad=True)
    loss = KINDS[type].divergence(logits, -logits.detach(), 1.0).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_a_higher_temperature_keeps_the_size_of_gradients() -> None:
    """For small logits it is the squared difference of centred logits over the number of labels, at any temperature."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(50, 4) * 0.01, torch.randn(50, 4) * 0.01
    centred = [one - one.mean(-1, keepdim=True) for one in (logits, teacher)]
    expected = (centred[0] - centred[1]).square().sum() / (2 * 4)
    for temperature in (1.0, 10.0):
        found = label_divergences(logits, teacher, temperature).sum()
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-6)
