from contextlib import nullcontext
from typing import Any

import pytest
import torch
from attention_by_hand import HEADS, SIZE, by_hand, states
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlp_mtl.models import dropping_attention
from nlp_mtl.models.dropout import QuickDropout
from nlp_mtl.models.dropping_attention import _batches, attend

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)
WINDOWS = st.none() | st.integers(1, 8)


@settings(max_examples=80, deadline=None)
@given(LENGTHS, WINDOWS, st.sampled_from([0, 30, 10_000]))
def test_values_and_gradients_are_those_of_each_text_alone_under_the_same_noise(
    lengths: list[int], window: int | None, waste: int
) -> None:
    drawn: list[Tensor] = []

    def noise(like: Tensor, rate: float) -> Tensor:
        generator = torch.Generator().manual_seed(len(drawn))
        drawn.append((torch.rand(like.shape, generator=generator, dtype=like.dtype) >= rate) / (1 - rate))
        return drawn[-1]

    given_states = states(sum(lengths), torch.float64)
    _batches.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropping_attention, "_WASTE", waste)
        patch.setattr(dropping_attention, "noise", noise)
        found = attend(given_states, tuple(lengths), window, 0.3, 0.7)
        batches, _ = _batches(tuple(lengths), HEADS, window)
    kept, place = [], 0
    for batch, one in zip(batches, drawn, strict=True):
        for text in one.view(batch.texts, HEADS, batch.length, batch.length):
            kept.append(text[:, : lengths[place], : lengths[place]])
            place += 1
    expected = by_hand(given_states, lengths, window, 0.7, kept)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), given_states),
        torch.autograd.grad((expected * weights).sum(), given_states),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    _batches.cache_clear()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_batches_hold_the_texts_in_order_and_waste_no_more_than_is_worth_it(lengths: list[int]) -> None:
    batches, _ = _batches(tuple(lengths), HEADS, None)
    assert sum(batch.texts for batch in batches) == len(lengths)
    place = 0
    for batch in batches:
        texts = lengths[place : place + batch.texts]
        place += batch.texts
        assert max(texts) == batch.length
        assert batch.texts * batch.length**2 - sum(length**2 for length in texts) <= dropping_attention._WASTE
        assert (batch.is_token is None) == (len(set(texts)) == 1)


def test_texts_of_one_length_are_one_batch() -> None:
    assert len(_batches(tuple([30] * 50), HEADS, None)[0]) == 1


def test_states_in_bfloat16_are_attended_to_in_float32() -> None:
    given_states = states(20, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropping_attention, "noise", lambda like, rate: torch.ones_like(like))
        found = attend(given_states, (12, 8), None, 0.1, 0.5)
    expected = by_hand([one.float() for one in given_states], [12, 8], None, 0.5)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    (gradient,) = torch.autograd.grad(found.sum(), given_states[:1])
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("quick", [False, True])
def test_attention_drops_out_at_its_rate(quick: bool) -> None:
    lengths = [40, 40, 30]
    query, key, _ = states(sum(lengths))
    value = torch.ones(HEADS, sum(lengths), SIZE)  # then an output is what was kept of its probabilities, scaled
    torch.manual_seed(0)
    context: Any = QuickDropout(0) if quick else nullcontext()
    with context:
        found = attend([query * 0, key, value], tuple(lengths), None, 0.25, 1.0)
    assert found.mean().item() == pytest.approx(1, abs=0.03)
    kept = found[:40, :, 0] * 40 * 0.75  # whole numbers: how many of 40 equal probabilities
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    assert kept.std() > 1
