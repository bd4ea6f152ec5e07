"""Pairs of texts: read as the tokenizer puts them together, cut as it cuts them, packed as padded."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_values import SAME, pair_values
from stock_models import tiny_model
from tokenizers import processors

from nlp_mtl import Recipe
from nlp_mtl.build import new_model, steps
from nlp_mtl.build_data import prepare
from nlp_mtl.data.batches import collate
from nlp_mtl.data.items import Item, frame, paired, windowed
from nlp_mtl.data.tokenization import encode_pairs, pair_framing, pair_lengths
from nlp_mtl.hub.export import stock
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task
from nlp_mtl.training.balancing import summed_loss

CLOSE = Task("close", "regression", ("value",), "pearson", pairs=True)
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")
PAIRS = [("anna loves rome", "the film"), ("tea", "bob hates the new tram line in oslo ."), ("", "x")]


def items(pairs: list[tuple[str, str]], max_length: int = 32) -> list[Item]:
    made, around = tiny.tokenizer(), frame(tiny.tokenizer(), max_length, 4)
    pieces, _, second = encode_pairs(made, [one.split() for one, _ in pairs], [other.split() for _, other in pairs])
    return [paired(n, pieces[n], second[n][0], {}, around) for n in range(len(pairs))]


def single(text: str) -> Item:
    made, around = tiny.tokenizer(), frame(tiny.tokenizer(), 32, 4)
    pieces, starts, _ = encode_pairs(made, [text.split()], [[]])
    return windowed(0, pieces[0], starts[0], {}, around)[0]


# Tokens


@pytest.mark.parametrize("max_length", [32, 12, 9, 8])
def test_a_pair_is_what_the_tokenizer_makes_of_it_also_where_it_is_cut(max_length: int) -> None:
    around = frame(tiny.tokenizer(), max_length, 4)
    for pair, item in zip(PAIRS, items(PAIRS, max_length), strict=True):
        inputs = collate([item], (), around).inputs
        expected = tiny.tokenizer()(*pair, truncation="longest_first", max_length=max_length)
        assert inputs["input_ids"][0].tolist() == expected["input_ids"]
        assert inputs["token_type_ids"][0].tolist() == expected["token_type_ids"]
        assert item.share == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(4, 20))
def test_what_of_a_pair_fits_is_what_tokenizers_keep(first: int, second: int, max_length: int) -> None:
    found = tiny.tokenizer()(
        " ".join(["tea"] * first), " ".join(["film"] * second), truncation=True, max_length=max_length
    )
    kept = tuple(found["input_ids"].count(tiny.VOCABULARY[word]) for word in ("tea", "film"))
    assert pair_lengths(first, second, max_length - 3) == kept


def test_a_tokenizer_with_two_separators_and_one_segment_is_followed() -> None:
    made = tiny.byte_level_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]",
        special_tokens=[("[CLS]", tiny.CLS), ("[SEP]", tiny.SEP)],
    )  # fmt: skip
    pair = pair_framing(made)
    assert (pair.prefix, pair.middle, pair.suffix) == ([tiny.CLS], [tiny.SEP] * 2, [tiny.SEP])
    assert [*pair.prefix_types, pair.first_type, *pair.middle_types, pair.second_type, *pair.suffix_types] == [0] * 6


# Models


def pair_model(family: str) -> MultiTaskModel:
    return tiny_model(family, [SAME, CLOSE, MOOD], max_length=32)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_of_pairs_are_the_stock_models_padded_and_packed_among_single_texts(family: str) -> None:
    model, around = pair_model(family), frame(tiny.tokenizer(), 32, 4)
    chosen = [*items(PAIRS), single("bob sees oslo")]
    padded = collate(chosen, (), around).inputs
    with torch.no_grad():
        found = model(**padded)["same"]
        for n, (one, other) in enumerate(PAIRS):
            encoded = tiny.tokenizer()(one, other, return_tensors="pt")
            if family in ("roberta", "xlm-roberta", "bert", "electra", "albert"):
                alone = stock(model, "same")(**encoded).logits[0]
            else:  # these have no segments
                alone = stock(model, "same")(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0]
            torch.testing.assert_close(found[n], alone, atol=1e-4, rtol=1e-4)
        if family not in ("deberta-v2", "mpnet"):
            assert model.packs("packed")
            packed = model(**collate(chosen, (), around, packed=True).inputs)
            torch.testing.assert_close(packed["same"], found, atol=1e-4, rtol=1e-4)
    if family == "bert":
        ignored = {**padded, "token_type_ids": torch.zeros_like(padded["input_ids"])}
        assert not torch.allclose(model(**ignored)["same"][:2], found[:2], atol=1e-2)  # the test could tell


def test_losses_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**pair_values(tmp_path), "max_length": 24})
    prepared = prepare(recipe)
    assert {task.name: task.pairs for task in prepared.tasks} == {
        "ner": False, "sentiment": False, "same": True, "close": True,
    }  # fmt: skip
    torch.manual_seed(0)
    model = new_model(recipe, prepared).eval()
    model.packs("packed")
    found = []
    for packed, max_tokens in ((False, 128), (False, 24), (True, 64)):
        data = steps(recipe, prepared, packed=packed)
        data.max_tokens, data.num_threads = max_tokens, 1
        sums = dict.fromkeys((task.name for task in prepared.tasks), 0.0)
        with torch.no_grad():
            for batch in data[0].micro_batches:
                logits = model(**batch.inputs, rows={name: rows.rows for name, rows in batch.tasks.items()})
                for name, rows in batch.tasks.items():
                    sums[name] += float(summed_loss(logits[name], rows))
        found.append(sums)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize(
    "sharing",
    [
        {"strategy": "lora", "rank": 2, "alpha": 4},
        {"strategy": "towers", "num_layers": 1, "cross_stitch": False},
        {"strategy": "gate"},
        {"strategy": "layer_mix"},
    ],
    ids=lambda sharing: sharing["strategy"],
)
def test_pairs_and_chains_go_with_what_lies_between_encoder_and_heads(sharing: dict[str, Any]) -> None:
    ner = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1", decoder="crf")
    models = []
    for settings_ in (sharing, None):
        torch.manual_seed(0)
        models.append(from_encoder(tiny.encoder("bert"), [SAME, CLOSE, ner], max_length=32, sharing=settings_).eval())
    models[0].heads.load_state_dict(models[1].heads.state_dict())
    around = frame(tiny.tokenizer(), 32, 4)
    inputs = collate(items(PAIRS), (), around).inputs
    with torch.no_grad():
        found, plain = (model(**inputs) for model in models)
        ignored = models[0](**{**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert {*found} == {"same", "close", "ner", "ner/transitions"}
    assert not torch.equal(found["same"], ignored["same"])  # segments were read
    if sharing["strategy"] in ("lora", "towers"):  # which change nothing at first
        for name, logits in plain.items():
            torch.testing.assert_close(found[name], logits, atol=1e-5, rtol=1e-5)
    if models[0].packs("auto"):
        with torch.no_grad():
            packed = models[0](**collate(items(PAIRS), (), around, packed=True).inputs)
        torch.testing.assert_close(packed["same"], found["same"], atol=1e-5, rtol=1e-5)
