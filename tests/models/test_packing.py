from itertools import pairwise
from typing import Any

import pytest
import torch
from attention_by_hand import by_hand, states
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_steps import MAX_LENGTH, TASKS
from packed_batches import FIXED, PACKABLE, loss_and_gradients, micro_batch
from stock_models import tiny_model
from tiny import PAD, VOCABULARY, encoder
from torch import Tensor
from transformers import AutoModel, NomicBertConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nlp_mtl.errors import ModelError
from nlp_mtl.models import packing
from nlp_mtl.models.encoder import checkpoint_gradients
from nlp_mtl.models.multitask import from_encoder


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", PACKABLE)
def test_loss_and_gradients_of_packed_texts_are_those_of_padded_ones(family: str, training: bool) -> None:
    model = tiny_model(family).train(training)  # its dropout rates are 0
    expected_loss, expected = loss_and_gradients(model, micro_batch(packed=False))
    assert model.packs("packed")
    loss, found = loss_and_gradients(model, micro_batch(packed=True))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name in found:
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5 * max(largest, 1), msg=name)


@pytest.mark.parametrize("family", PACKABLE)
def test_a_model_fit_for_packed_texts_answers_padded_ones_as_before(family: str) -> None:
    model = tiny_model(family).eval()
    inputs = micro_batch(packed=False).inputs
    expected = model(**inputs)
    assert model.packs("packed")
    for task, logits in model(**inputs).items():
        assert torch.equal(logits, expected[task])


@pytest.mark.parametrize("family", PACKABLE)
def test_without_rows_every_head_sees_all_packed_texts(family: str) -> None:
    model = tiny_model(family).eval()
    model.packs("packed")
    padded, packed = micro_batch(packed=False).inputs, micro_batch(packed=True).inputs
    expected, found = model(**padded), model(**packed)
    there = padded["attention_mask"].bool()
    for task in ("ner", "pos"):
        torch.testing.assert_close(found[task][0], expected[task][there], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found["sentiment"], expected["sentiment"], rtol=1e-5, atol=1e-4)
    assert set(model(**packed, tasks=["pos"])) == {"pos"}


def test_heads_without_a_row_in_packed_texts_get_gradients_of_zero() -> None:
    model = tiny_model("bert")
    model.packs("packed")
    _, gradients = loss_and_gradients(model, micro_batch(packed=True, labelled=False))
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("family", sorted(FIXED))
def test_families_whose_attention_cannot_be_replaced_are_refused_with_the_reason(family: str) -> None:
    model = tiny_model(family)
    assert "cannot be replaced" in str(packing.refusal(model.encoder))
    with pytest.raises(ModelError, match=r"layout: packed, but .* cannot be replaced; choose auto or padded"):
        packing.will_pack(model.config.encoder_config, "packed")
    assert packing.will_pack(model.config.encoder_config, "auto") is False


@pytest.mark.parametrize("family", PACKABLE)
def test_a_configuration_tells_which_families_may_pack(family: str) -> None:
    assert packing.will_pack(encoder(family).config, "packed")


def test_nomic_bert_packs_too() -> None:
    config = NomicBertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    assert packing.refusal(AutoModel.from_config(config)) is None


def test_an_encoder_that_lets_texts_leak_is_refused_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, packing.ATTENTION, leaking)
    model = tiny_model("bert")
    assert "differ by" in str(packing.refusal(model.encoder))
    assert model.encoder.config._attn_implementation == "sdpa"


def test_an_encoder_that_does_not_take_positions_is_refused_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert").train()

    own = model.encoder.forward

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Any:
        return own(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model.encoder, "forward", forward)
    assert "TypeError" in str(packing.refusal(model.encoder))
    assert model.encoder.training


def test_an_encoder_whose_own_attention_does_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def louder(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        out, weights = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return out * 1.5, weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", louder)
    model = tiny_model("bert")
    assert "packed texts differ by" in str(packing.refusal(model.encoder))
    assert model.encoder.config._attn_implementation == "sdpa"


def test_an_encoder_loaded_with_an_attention_of_its_own_keeps_it() -> None:
    model = tiny_model("bert")
    model.encoder.set_attn_implementation("flex_attention")
    assert "`flex_attention`" in str(packing.refusal(model.encoder))
    assert model.encoder.config._attn_implementation == "flex_attention"


# ---- attention itself

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.none() | st.integers(1, 8))
def test_each_text_attends_to_itself_alone(lengths: list[int], window: int | None) -> None:
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    of = tuple(lengths)
    given_states = states(sum(lengths))
    expected = by_hand(given_states, lengths, window, 0.3)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * weights).sum(), given_states)
    for found in (
        packing._by_length(given_states, of, window, 0.3),
        packing._padded(given_states, ends, of, window, 0.0, 0.3),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad((found * weights).sum(), given_states)
        for gradient, one in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, one, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_places_are_those_of_each_texts_tokens(lengths: list[int]) -> None:
    ends = torch.tensor([0, *lengths]).cumsum(0)
    places = packing.token_places(ends, max(lengths))
    assert [row[row >= 0].tolist() for row in places] == [
        list(range(start, stop)) for start, stop in pairwise(ends.tolist())
    ]
    assert [int((row >= 0).sum()) for row in places] == lengths
    assert all((row[length:] == -1).all() for row, length in zip(places, lengths, strict=True))


def test_a_sliding_window_holds_without_a_mask_too() -> None:
    model = tiny_model("modernbert").eval()
    ids = torch.randint(5, len(VOCABULARY), (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encoder(input_ids=ids).last_hidden_state
        model.packs("packed")
        torch.testing.assert_close(model.encoder(input_ids=ids).last_hidden_state, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_texts_padded_together_are_at_most_twice_as_long_as_each_other(lengths: list[int]) -> None:
    cuts = packing._doublings(tuple(lengths))
    groups = [lengths[first:stop] for first, stop in pairwise(cuts)]
    assert [length for group in groups for length in group] == lengths
    assert all(group and max(group) <= 2 * min(group) for group in groups)


class OnGpu(Tensor):
    device = torch.device("cuda")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("window", "reach"), [(None, None), (9, None), (5, 4)])
@pytest.mark.parametrize("only_flash", [True, False])
def test_the_kernels_for_texts_of_various_lengths_get_what_they_are_documented_to_take(
    window: int | None, reach: int | None, dropout: float, only_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (7, 3, 1)
    ends = torch.tensor([0, 7, 10, 11], dtype=torch.int32)
    given_states = states(sum(lengths))
    expected = by_hand(given_states, list(lengths), window, 0.3)
    called = []

    def flash(q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float, **window: int) -> tuple[Tensor, Tensor]:
        assert q.shape == k.shape == v.shape == (11, 2, 4)  # [tokens, heads, size]
        assert (rest[0] is ends, rest[1] is ends, rest[2:]) == (True, True, (7, 7, dropout, False, False))
        assert scale == 0.3
        assert window == ({} if reach is None else {"window_size_left": reach, "window_size_right": reach})
        called.append("flash")
        return expected, ends

    def memory_efficient(q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float) -> tuple[Tensor, Tensor]:
        assert q.shape == k.shape == v.shape == (1, 11, 2, 4)
        assert (rest[0], rest[1] is ends, rest[2] is ends, rest[3:]) == (None, True, True, (7, 7, 0.0, 0, True))
        assert scale == 0.3
        called.append("memory efficient")
        return expected[None], ends

    monkeypatch.setattr(packing, "_flash", flash)
    monkeypatch.setattr(packing, "_memory_efficient", memory_efficient)
    monkeypatch.setattr(packing, "_has_flash", lambda query: True)
    monkeypatch.setattr(packing, "_has_memory_efficient", lambda query: not only_flash)
    q, k, v = (one[None].detach().as_subclass(OnGpu) for one in given_states)
    kwargs = {"cu_seq_lens_q": ends, "lengths": lengths, "sliding_window": window, "scaling": 0.3, "dropout": dropout}
    found, _ = packing.attention(torch.nn.Module(), q, k, v, None, **kwargs)
    torch.testing.assert_close(found.detach(), expected[None].detach())
    # The memory-efficient kernel's forward and backward passes drop out differently.
    assert called == ["flash" if only_flash or window == 5 or dropout else "memory efficient"]


def test_gradients_are_the_same_when_layers_run_again_with_dropout() -> None:
    found = []
    for again in (False, True):
        model = from_encoder(encoder(dropout=0.3), TASKS, max_length=MAX_LENGTH, window_overlap=4).train()
        assert model.packs("packed")
        if again:
            checkpoint_gradients(model.encoder)
        torch.manual_seed(0)
        found.append(loss_and_gradients(model, micro_batch(packed=True))[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    assert any(gradient.any() for gradient in found[0].values())


@pytest.mark.parametrize("family", PACKABLE)
def test_packed_texts_in_bfloat16_are_as_near_to_float32_as_padded_ones(family: str) -> None:
    model = tiny_model(family).eval()
    expected = model(**micro_batch(packed=False).inputs)["sentiment"]
    with torch.autocast("cpu", torch.bfloat16):
        padded = model(**micro_batch(packed=False).inputs)["sentiment"].float()
        assert model.packs("packed")
        packed = model(**micro_batch(packed=True).inputs)["sentiment"].float()
    off = [(one - expected).abs().mean().item() for one in (padded, packed)]
    assert off[1] <= 2 * off[0] + 1e-3
