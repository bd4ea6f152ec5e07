from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from tiny import Drawn
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from two_tasks import IDS, MASK, in_training

from nlp_mtl.models.dropout import QuickDropout, noise, quick_dropout


def dropped(input: Tensor, p: float, seed: int = 0, **options: Any) -> Tensor:
    with QuickDropout(seed):
        return functional.dropout(input, p, **options)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_dropout_drops_at_its_rate_and_scales_what_it_keeps(p: float, dtype: torch.dtype) -> None:
    count = 400_000
    found = dropped(torch.ones(count, dtype=dtype), p)
    rate = round(p * 65536) / 65536
    assert set(found.tolist()) == {0.0, torch.tensor(1 / (1 - rate), dtype=dtype).item()}
    # Numbers come four from one draw: each of the four has the rate, and none tells of its neighbour.
    zeros = (found == 0).reshape(-1, 4).double()
    for column in zeros.T:
        assert column.mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / (count / 4)) ** 0.5)
    together = torch.corrcoef(zeros.T) - torch.eye(4)
    assert together.abs().max().item() < 5 / (count / 4) ** 0.5


def test_quick_dropout_is_settled_by_the_seed_and_differs_from_call_to_call() -> None:
    ones = torch.ones(7, 13)  # 91 numbers, not a multiple of four
    assert torch.equal(dropped(ones, 0.5), dropped(ones, 0.5))
    assert not torch.equal(dropped(ones, 0.5), dropped(ones, 0.5, seed=1))
    with QuickDropout(0):
        assert not torch.equal(functional.dropout(ones, 0.5), functional.dropout(ones, 0.5))


def test_quick_dropout_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    dropped(torch.ones(100), 0.5)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_that_is_off_or_drops_everything_is_left_to_torch() -> None:
    ones = torch.ones(50)
    assert torch.equal(dropped(ones, 0.5, training=False), ones)
    assert torch.equal(dropped(ones, 0.0), ones)
    assert torch.equal(dropped(ones, 1.0), torch.zeros(50))
    changed = torch.ones(50)
    dropped(changed, 0.5, inplace=True)
    assert 0 < changed.count_nonzero() < 50


def test_the_gradient_of_quick_dropout_is_what_it_multiplied_with() -> None:
    input = torch.randn(40, requires_grad=True)
    output = dropped(input, 0.3)
    output.sum().backward()
    assert input.grad is not None
    torch.testing.assert_close(input.grad * input, output)


MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "boolean": lambda: MASK.bool()[:, None, None, :].expand(3, 2, 10, 10),
    "added": lambda: torch.zeros(3, 1, 10, 10).masked_fill(MASK[:, None, None, :] == 0, -1e9),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_that_drops_out_is_stock_attention_but_for_what_it_drops(
    mask: str, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    stock_inputs = [torch.randn(3, 2, 10, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    inputs = [tensor.detach().float().requires_grad_() for tensor in stock_inputs]
    attn_mask = MASKS[mask]()
    as_stock = attn_mask.double() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    monkeypatch.setattr(QuickDropout, "noise", lambda _, like, __: torch.ones_like(like))
    with QuickDropout(0):
        found = functional.scaled_dot_product_attention(*inputs, attn_mask, dropout_p=0.2, scale=scale)
    expected = functional.scaled_dot_product_attention(*stock_inputs, as_stock, scale=scale)
    torch.testing.assert_close(found, expected.float())
    found.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(inputs, stock_inputs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_a_query_that_sees_nothing_leaves_the_others_as_they_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 2, 6, 8)
    seen = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    seen[..., 4, :] = False
    mask = seen if kind == "boolean" else torch.zeros(1, 1, 6, 6).masked_fill(~seen, float("-inf"))
    monkeypatch.setattr(QuickDropout, "noise", lambda _, like, __: torch.ones_like(like))
    with QuickDropout(0):
        found = functional.scaled_dot_product_attention(query, query, query, mask, dropout_p=0.1)
    expected = functional.scaled_dot_product_attention(query, query, query, mask)
    rest = [0, 1, 2, 3, 5]
    torch.testing.assert_close(found[:, :, rest], expected[:, :, rest])
    torch.testing.assert_close(found[:, :, 4], query.mean(dim=2))


def test_attention_in_bfloat16_is_that_of_float32_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 4, 30, 32).bfloat16() for _ in range(3)]
    monkeypatch.setattr(QuickDropout, "noise", lambda _, like, __: torch.ones_like(like))
    with QuickDropout(0):
        found = functional.scaled_dot_product_attention(*inputs, dropout_p=0.1)
    expected = functional.scaled_dot_product_attention(*(tensor.float() for tensor in inputs))
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 2**-7 * expected.abs().mean()  # bfloat16 has 8 bits


def test_attention_drops_out_at_its_rate() -> None:
    # All keys are alike and values are ones: what comes out is the mean of the noise over 500 keys.
    query = torch.zeros(4, 4, 500, 8)
    with QuickDropout(0):
        found = functional.scaled_dot_product_attention(query, query, torch.ones_like(query), dropout_p=0.3)
    means = found[..., 0].flatten()
    assert means.mean().item() == pytest.approx(1, abs=5 * (0.3 / 0.7 / 500 / means.numel()) ** 0.5)
    assert means.std().item() == pytest.approx((0.3 / 0.7 / 500) ** 0.5, rel=0.05)


def test_causal_attention_is_left_to_torch() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 1, 6, 8)
    with QuickDropout(0):
        torch.manual_seed(1)
        found = functional.scaled_dot_product_attention(query, query, query, dropout_p=0.5, is_causal=True)
    torch.manual_seed(1)
    assert torch.equal(
        found, functional.scaled_dot_product_attention(query, query, query, dropout_p=0.5, is_causal=True)
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_dropout_of_every_family_is_quick(family: str) -> None:
    model = in_training(family)
    with Drawn() as stock:
        model(IDS, MASK)
    assert stock.names
    with Drawn() as quick, QuickDropout(0):
        first, second = model(IDS, MASK), model(IDS, MASK)
    assert quick.names == []
    assert not any(torch.equal(first[task], second[task]) for task in first)
    assert all(torch.isfinite(logits).all() for logits in first.values())


def test_layers_that_run_again_in_the_backward_pass_are_left_to_torch() -> None:
    model = in_training("bert")
    assert isinstance(quick_dropout(model, 0), QuickDropout)
    model.encoder.encoder.layer[1].gradient_checkpointing = True
    model.encoder.encoder.layer[1]._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    with Drawn() as stock, quick_dropout(model, 0):
        model(IDS, MASK)
    assert stock.names


@pytest.mark.parametrize("quick", [False, True])
def test_noise_is_what_dropout_multiplies_with(quick: bool) -> None:
    values = torch.full((100_000,), 3.0)
    if quick:
        with QuickDropout(0):
            found = noise(values, 0.25)
    else:
        torch.manual_seed(0)
        found = noise(values, 0.25)
    torch.testing.assert_close(found.unique(), torch.tensor([0, 4 / 3]))
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert noise(values, 0).eq(1).all()


def test_an_outer_quick_dropout_goes_on_behind_an_inner_one() -> None:
    with Drawn() as drawn, QuickDropout(0):
        with QuickDropout(1):
            pass
        noise(torch.ones(3), 0.5)
    assert drawn.names == []


def test_noise_is_torchs_again_behind_quick_dropout() -> None:
    with QuickDropout(0):
        pass
    with Drawn() as drawn:
        noise(torch.ones(3), 0.5)
    assert drawn.names
