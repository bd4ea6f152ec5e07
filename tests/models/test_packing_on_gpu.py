"""What only a GPU can show of packed texts; everything else about them is in test_packing.py."""

import pytest
import torch
from attention_by_hand import by_hand
from packed_batches import PACKABLE, loss_and_gradients, micro_batch
from stock_models import tiny_model
from torch import Tensor

from nlp_mtl.models import packing
from nlp_mtl.training.determinism import deterministic_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [130, 64, 33, 33, 7, 1]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def states(dtype: torch.dtype, size: int = 32, lengths: list[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, sum(lengths), size, generator=generator).to(dtype) for _ in range(3)]


def attended(
    given: list[Tensor], window: int | None = None, dropout: float = 0.0, lengths: list[int] = LENGTHS
) -> tuple[Tensor, list[Tensor]]:
    """What attention gives on the GPU, and the gradients of the sum of its squares."""
    inputs = [one.cuda().requires_grad_() for one in given]
    q, k, v = (one[None] for one in inputs)
    ends = torch.tensor([0, *lengths]).cumsum(0).int().cuda()
    kwargs = {"cu_seq_lens_q": ends, "lengths": tuple(lengths), "sliding_window": window, "scaling": 0.2}
    found, _ = packing.attention(torch.nn.Module(), q, k, v, None, dropout=dropout, **kwargs)
    found.float().square().sum().backward()
    return found[0].detach().cpu(), [one.grad.cpu() for one in inputs if one.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [32, 4, 5], ids=lambda size: f"size {size}")
@pytest.mark.parametrize("window", [None, 9, 200])
def test_attention_and_its_gradients_are_those_by_hand(window: int | None, size: int, dtype: torch.dtype) -> None:
    given = states(dtype, size)
    exact = [one.double().requires_grad_() for one in given]
    expected = by_hand(exact, LENGTHS, window, 0.2)
    expected.square().sum().backward()
    found, gradients = attended(given, window)
    for one, other in zip([found, *gradients], [expected.detach(), *(one.grad for one in exact)], strict=True):
        assert other is not None
        assert (one.double() - other).norm() <= TOLERANCE[dtype] * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 9])
def test_dropout_keeps_what_attention_gives_on_average_and_is_the_same_for_a_seed(
    window: int | None, dtype: torch.dtype
) -> None:
    given = states(dtype)
    whole = attended(given, window)[0].float()
    draws = []
    for seed in range(400):
        torch.manual_seed(seed)
        draws.append(attended(given, window, dropout=0.2)[0].float())
    assert not torch.equal(draws[0], draws[1])
    assert (torch.stack(draws).mean(0) - whole).norm() <= 0.1 * whole.norm()
    once, twice = [], []
    for found in (once, twice):
        torch.manual_seed(3)
        out, gradients = attended(given, window, dropout=0.2)
        found += [out, *gradients]
    assert all(torch.equal(one, other) for one, other in zip(once, twice, strict=True))


def dropped_attention(
    q: Tensor, k: Tensor, window: int | None, dropout: float, lengths: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What attention weighs with, read off values that are unit vectors ([heads, tokens, tokens]), for one draw; and
    the gradients of its squares' sum to ``q`` and ``k``, added up from as many runs with the same draw."""
    size, tokens = q.shape[-1], q.shape[1]
    parts, gradients = [], [torch.zeros_like(q), torch.zeros_like(k)]
    for first in range(0, tokens, size):
        units = torch.eye(tokens, dtype=q.dtype)[:, first : first + size]
        units = torch.nn.functional.pad(units, (0, size - units.shape[1])).expand(len(q), -1, -1)
        torch.manual_seed(5)
        out, found = attended([q, k, units], window, dropout, lengths)
        parts.append(out.transpose(0, 1)[..., : tokens - first])
        gradients = [one + other for one, other in zip(gradients, found, strict=False)]
    return torch.cat(parts, dim=-1), gradients[0], gradients[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 9])
def test_the_backward_pass_drops_out_what_the_forward_pass_has_dropped(window: int | None, dtype: torch.dtype) -> None:
    lengths = [70, 33, 33, 5]
    q, k, _ = states(dtype, 32, lengths)
    found, *gradients = dropped_attention(q, k, window, 0.3, lengths)
    texts = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    places = torch.arange(sum(lengths))
    seen = texts[:, None] == texts
    if window is not None:
        seen &= (places[:, None] - places).abs() < window
    kept = found != 0
    assert not kept[:, ~seen].any()
    assert abs(kept[:, seen].float().mean() - 0.7) < 0.02
    exact = [one.double().requires_grad_() for one in (q, k)]
    scores = (exact[0] @ exact[1].mT * 0.2).masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) * kept / 0.7
    assert (found - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    expected.square().sum().backward()
    for one, other in zip(gradients, (value.grad for value in exact), strict=True):
        assert other is not None
        assert (one - other).norm() <= 3 * TOLERANCE[dtype] * other.norm()
    # Heads and texts of one length each have draws of their own.
    for one, other in ((kept[0, :70, :70], kept[1, :70, :70]), (kept[0, 70:103, 70:103], kept[0, 103:136, 103:136])):
        both = seen[: len(one), : len(one)]
        assert abs((one & other)[both].float().mean() - 0.49) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 129])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_of_long_texts_are_the_same_each_time(dropout: float, window: int | None, dtype: torch.dtype) -> None:
    lengths = [505, 33] * 8
    given = states(dtype, 64, lengths)
    repeated = []
    with deterministic_kernels(torch.device("cuda")):
        for _ in range(20):
            torch.manual_seed(3)
            out, gradients = attended(given, window, dropout, lengths)
            repeated.append([out, *gradients])
    for again in repeated[1:]:
        assert all(torch.equal(one, other) for one, other in zip(repeated[0], again, strict=True))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("family", PACKABLE)
def test_loss_and_gradients_of_packed_texts_are_those_of_padded_ones(family: str, precision: str) -> None:
    model = tiny_model(family).cuda().train()  # its dropout rates are 0
    bound = TOLERANCE[torch.bfloat16] * 3 if precision == "bf16" else TOLERANCE[torch.float32]
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        expected_loss, expected = loss_and_gradients(model, micro_batch(packed=False, device="cuda"))
        assert model.packs("packed")
        loss, found = loss_and_gradients(model, micro_batch(packed=True, device="cuda"))
    assert (loss - expected_loss).abs() <= bound * expected_loss.abs()
    assert found.keys() == expected.keys()
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= bound * scale, name
