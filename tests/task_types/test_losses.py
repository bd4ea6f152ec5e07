"""Losses with weights of classes, focused, smoothed: against torch, closed forms and the plain loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nlp_mtl.task_types import KINDS
from nlp_mtl.task_types.losses import indicator_losses, label_losses
from nlp_mtl.tasks import MISSING, PLAIN_LOSS, LossShape

LABELS = 4
WEIGHTS = (0.5, 1.0, 2.0, 0.25)


def drawn(seed: int, count: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    targets = torch.randint(0, LABELS, (count,))
    targets[torch.rand(count) < 0.2] = MISSING
    return (3 * torch.randn(count, LABELS)).requires_grad_(), targets


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(), WEIGHTS]), st.sampled_from([0.0, 0.1, 0.5]))
def test_weights_and_smoothing_are_torchs(seed: int, weights: tuple[float, ...], smoothing: float) -> None:
    logits, targets = drawn(seed)
    found = label_losses(logits, targets, LossShape(weights, 0.0, smoothing))
    criterion = torch.nn.CrossEntropyLoss(
        torch.tensor(weights) if weights else None, ignore_index=MISSING, reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(found.sum(), criterion(logits, targets))
    assert (found[targets == MISSING] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 5), st.sampled_from([(), WEIGHTS]))
def test_the_focal_loss_is_that_of_its_paper(seed: int, gamma: float, weights: tuple[float, ...]) -> None:
    logits, targets = drawn(seed)
    found = label_losses(logits, targets, LossShape(weights, gamma)).detach()
    for place, target in enumerate(targets.tolist()):
        if target == MISSING:
            assert float(found[place]) == 0
            continue
        p = torch.softmax(logits.detach()[place].double(), -1)[target]
        alpha = weights[target] if weights else 1.0
        assert float(found[place]) == pytest.approx(float(-alpha * (1 - p) ** gamma * p.log()), rel=1e-4, abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 5), st.sampled_from([(), WEIGHTS]), st.sampled_from([0.0, 0.2]))
def test_losses_of_several_labels_are_those_of_each_for_itself(
    seed: int, gamma: float, weights: tuple[float, ...], smoothing: float
) -> None:
    torch.manual_seed(seed)
    logits, targets = 3 * torch.randn(5, LABELS), torch.randint(0, 2, (5, LABELS)).float()
    found = indicator_losses(logits, targets, LossShape(weights, gamma, smoothing))
    for label in range(LABELS):
        p = torch.sigmoid(logits[:, label].double())
        wanted = targets[:, label] * (1 - smoothing) + smoothing / 2
        alpha = weights[label] if weights else 1.0
        expected = -alpha * wanted * p.log() - (1 - wanted) * (1 - p).log()
        expected = expected * torch.where(targets[:, label] > 0, 1 - p, p) ** gamma
        torch.testing.assert_close(found[:, label].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["token-classification", "text-classification", "multi-label-classification"])
@pytest.mark.parametrize(
    "shape", [LossShape(WEIGHTS), LossShape((), 2.0), LossShape(WEIGHTS, 0.5), LossShape((), 0.0, 0.1)]
)
def test_gradients_are_those_of_finite_differences_and_nothing_gives_zero(kind: str, shape: LossShape) -> None:
    torch.manual_seed(0)
    words = kind == "token-classification"
    sizes = (3, 2, LABELS) if words else (3, LABELS)
    targets = torch.tensor([[0, MISSING], [2, 3], [1, 1]]) if words else torch.tensor([0, 2, 1])
    if kind == "multi-label-classification":
        targets = torch.randint(0, 2, (3, LABELS)).float()
    weights = torch.tensor([1.0, 0.5, 0.5])
    logits = torch.randn(sizes, requires_grad=True)
    loss = KINDS[kind].summed_loss(logits, targets, weights, shape)
    (gradient,) = torch.autograd.grad(loss, logits)
    for place in range(0, logits.numel(), 5):
        step = torch.zeros(logits.numel()).index_fill_(0, torch.tensor(place), 1e-2).reshape(sizes)
        with torch.no_grad():
            both = [float(KINDS[kind].summed_loss(logits + sign * step, targets, weights, shape)) for sign in (1, -1)]
        assert (both[0] - both[1]) / 2e-2 == pytest.approx(float(gradient.flatten()[place]), abs=2e-3)
    none = KINDS[kind].summed_loss(logits[:0], targets[:0], weights[:0], shape)
    assert float(none.detach()) == 0
    assert torch.autograd.grad(none, logits, allow_unused=True)[0] is not None


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_label_that_is_certain_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0, 0], [-200.0, 0, 0, 0]], requires_grad=True)
    label_losses(logits, torch.tensor([0, 0]), LossShape((), gamma)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    both = torch.tensor([[200.0, -200, 200, -200]], requires_grad=True)
    indicator_losses(both, torch.tensor([[1.0, 0, 0, 1]]), LossShape((), gamma)).sum().backward()
    assert both.grad is not None
    assert torch.isfinite(both.grad).all()


def test_without_changes_it_is_the_plain_loss_bit_for_bit() -> None:
    logits, targets = drawn(3)
    plain = functional.cross_entropy(logits, targets, ignore_index=MISSING, reduction="none")
    assert torch.equal(label_losses(logits, targets, PLAIN_LOSS), plain)
    words = KINDS["token-classification"].summed_loss(logits[None], targets[None], torch.ones(1), PLAIN_LOSS)
    assert torch.equal(words, functional.cross_entropy(logits, targets, ignore_index=MISSING, reduction="sum"))
