from itertools import product

import numpy as np
import pytest
import torch
from mixed_steps import NER, POS, SENTIMENT, TASKS, framing
from stock_models import by_hand, stock, tiny_model, window_logits
from tiny import tokenizer

from nlp_mtl.data.items import Item, windowed
from nlp_mtl.data.tokenization import encode_words
from nlp_mtl.inference.scoring import score_items

TEXTS = [
    ["anna", "loves", "rome"],
    ["uning", "\u200b", "xxx", "teas", "."],
    [],
    ["the", "good", "film"] * 6 + ["bob", "hates", "oslo", "!"] * 6,  # several windows
    ["x" * 40, "bob"],  # a word longer than a window
    ["tea"],
]


def items() -> list[Item]:
    pieces, starts = encode_words(tokenizer(), TEXTS)
    return [i for n in range(len(TEXTS)) for i in windowed(n, pieces[n], starts[n], {}, framing())]


@pytest.mark.parametrize(
    ("family", "packed"),
    [("deberta-v2", False), *product(("bert", "roberta", "modernbert", "electra"), (False, True))],
)
def test_one_pass_says_what_stock_models_of_one_task_say_row_by_row(family: str, packed: bool) -> None:
    model = tiny_model(family)
    assert not packed or model.packs("packed")
    found = score_items(model, items(), len(TEXTS), TASKS, framing(), max_tokens=64, packed=packed)
    for task in TASKS:
        one = stock(model, task)
        for words, (_, probabilities) in zip(TEXTS, found[task.name], strict=True):
            expected = by_hand(one, words)
            assert probabilities.shape == expected.shape
            np.testing.assert_allclose(probabilities, expected, atol=2e-5)


def test_the_tokenizer_and_stock_model_alone_agree_on_a_plain_text() -> None:
    model, words = tiny_model(), TEXTS[0]
    found = score_items(model, items(), len(TEXTS), [NER], framing(), max_tokens=64)["ner"][0].scores
    encoded = tokenizer()(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        logits = stock(model, NER)(**{k: encoded[k] for k in ("input_ids", "attention_mask")}).logits[0]
    np.testing.assert_allclose(found, logits[1:-1].softmax(-1).numpy(), atol=2e-5)


def test_a_text_in_several_windows_is_answered_by_the_mean_of_their_logits() -> None:
    model = tiny_model()
    logits = [one for _, one in window_logits(stock(model, SENTIMENT), TEXTS[3])]
    assert len(logits) > 2
    found = score_items(model, items(), len(TEXTS), [SENTIMENT], framing(), max_tokens=16)["sentiment"][3].scores
    expected = torch.tensor(np.array(logits))
    np.testing.assert_allclose(found, expected.mean(0).softmax(-1).numpy(), atol=2e-5)
    assert np.abs(found - expected.softmax(-1).mean(0).numpy()).max() > 1e-4  # the test could tell


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("max_tokens", [16, 40, 10_000])
def test_micro_batches_change_nothing(max_tokens: int, packed: bool) -> None:
    model = tiny_model()
    model.packs("packed")
    found = score_items(model, items(), len(TEXTS), TASKS, framing(), max_tokens=max_tokens, packed=packed)
    one_by_one = score_items(model, items(), len(TEXTS), TASKS, framing(), max_tokens=1)
    for task in TASKS:
        for a, b in zip(found[task.name], one_by_one[task.name], strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=2e-5)


def test_only_the_heads_asked_for_are_run_and_the_encoder_once_a_micro_batch() -> None:
    model, ran = tiny_model(), []
    for name, module in {"encoder": model.encoder, **{t.name: model.head(t.name) for t in TASKS}}.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    done: list[float] = []
    score_items(model, items(), len(TEXTS), [POS], framing(), max_tokens=10_000, on_rows=done.append)
    assert ran == ["encoder", "pos"] * len(done)
    assert sum(done) == pytest.approx(len(TEXTS))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_model_is_put_back_into_its_mode(training: bool) -> None:
    model = tiny_model()
    expected = score_items(model, items(), len(TEXTS), [NER], framing(), max_tokens=64)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train(training)
    found = score_items(model, items(), len(TEXTS), [NER], framing(), max_tokens=64)
    assert model.training is training
    for a, b in zip(found["ner"], expected["ner"], strict=True):
        np.testing.assert_array_equal(a.scores, b.scores)


def test_no_items_are_no_answers() -> None:
    assert score_items(tiny_model(), [], 0, TASKS, framing(), max_tokens=64) == {t.name: [] for t in TASKS}


def test_bfloat16_is_close_and_gives_probabilities() -> None:
    model = tiny_model()
    exact = score_items(model, items(), len(TEXTS), TASKS, framing(), max_tokens=64)
    found = score_items(model, items(), len(TEXTS), TASKS, framing(), max_tokens=64, mixed_precision="bf16")
    for task in TASKS:
        for a, b in zip(found[task.name], exact[task.name], strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=0.1)
            np.testing.assert_allclose(a.scores.sum(-1), 1, atol=1e-5)
    assert not np.array_equal(found["ner"][0].scores, exact["ner"][0].scores)
