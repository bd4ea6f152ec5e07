"""Weights drawn to their start: the gradients are those of the penalties in the papers, by autograd."""

import pytest
import torch
from torch import nn

from nlp_mtl.training.anchor import Anchor
from nlp_mtl.training.optimizer import parameter_groups


def moved_model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model with gradients, and where its weights were before they moved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
        parameter.grad = torch.randn_like(parameter)
    return model, start


@pytest.mark.parametrize("weighed", [False, True], ids=["L2-SP", "EWC"])
def test_the_gradient_is_that_of_the_penalty_and_the_penalty_what_it_says(weighed: bool) -> None:
    model, start = moved_model()
    importance = {name: torch.rand_like(tensor) for name, tensor in start.items()} if weighed else None
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    penalty = (
        0.7
        / 2
        * sum(
            ((1.0 if importance is None else importance[name]) * (parameter - start[name]) ** 2).sum()
            for name, parameter in model.named_parameters()
        )
    )
    wanted = torch.autograd.grad(penalty, [*model.parameters()])
    anchor = Anchor(start, 0.7, importance)
    anchor.add_gradients(model.named_parameters())
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, before[name] + gradient)
    assert anchor.penalty(model.named_parameters()) == pytest.approx(penalty.item(), rel=1e-6)


def test_weights_without_a_start_or_a_gradient_are_left_alone() -> None:
    model, start = moved_model()
    new = {name: tensor for name, tensor in start.items() if name.startswith("0.")}
    model[0].bias.grad = None
    before = model[2].weight.grad.clone()
    Anchor(new, 1.0).add_gradients(model.named_parameters())
    assert torch.equal(model[2].weight.grad, before)
    assert model[0].bias.grad is None
    torch.testing.assert_close(model[0].weight.grad - (model[0].weight - start["0.weight"]), _plain_gradient())


def _plain_gradient() -> torch.Tensor:
    return moved_model()[0][0].weight.grad


def test_weights_that_importance_does_not_name_are_free() -> None:
    model, start = moved_model()
    anchor = Anchor(start, 1.0, {"2.bias": torch.ones(2)})
    before = model[0].weight.grad.clone()
    anchor.add_gradients(model.named_parameters())
    assert torch.equal(model[0].weight.grad, before)
    wanted = ((model[2].bias - start["2.bias"]) ** 2).sum().item() / 2
    assert anchor.penalty(model.named_parameters()) == pytest.approx(wanted)


def test_weights_that_are_drawn_to_their_start_are_not_drawn_to_0_as_well() -> None:
    model, _ = moved_model()
    rates = {"learning_rate": 1.0, "head_learning_rate": 1.0, "weight_decay": 0.1}
    groups = parameter_groups(model, **rates, undecayed=["0.weight"])
    decays = {name: group["weight_decay"] for group in groups for name in group["parameter_names"]}
    assert decays == {"0.weight": 0.0, "0.bias": 0.0, "2.weight": 0.1, "2.bias": 0.0}
