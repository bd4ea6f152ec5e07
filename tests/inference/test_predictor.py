import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import ODD, TEXTS, assert_alike
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mixed_steps import POS, SENTIMENT, TASKS
from stock_models import saved, tiny_model
from tiny import FAMILIES, byte_level_tokenizer, tokenizer

from nlp_mtl import ModelError, load
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.words import WORD_SPLITTERS, split_words

PREDICTOR = Predictor(tiny_model(), tokenizer())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("saved") / "model")


# ---- offsets


def check_answer(text: str, answer: dict[str, Any], words: list[tuple[int, int]]) -> None:
    assert [(e["start"], e["end"]) for e in answer["pos"]] == words  # each word, in order
    for entry in answer["pos"] + answer["ner"]:
        assert text[entry["start"] : entry["end"]] == entry["text"]
        assert 0 < entry["score"] <= 1
    edges = [edge for e in answer["ner"] for edge in (e["start"], e["end"])]
    assert edges == sorted(edges)
    assert (answer["sentiment"]["label"] is None) == (not words)
    assert json.loads(json.dumps(answer)) == answer


CHARACTERS = st.one_of(st.characters(), st.sampled_from("ab .\t\n\u0301\u200d\u200b👩אع東\ud83d\udc69"))


@settings(max_examples=120, deadline=None)
@given(st.text(CHARACTERS, max_size=60))
@example(ODD[0])
@example(ODD[4])
def test_offsets_index_into_any_text(text: str) -> None:
    check_answer(text, PREDICTOR(text), split_words(text, "unicode"))


@pytest.mark.parametrize("splitter", WORD_SPLITTERS)
@pytest.mark.parametrize("make", [tokenizer, byte_level_tokenizer])
def test_offsets_index_into_odd_texts_with_every_splitter_and_kind_of_tokenizer(splitter: str, make: Callable) -> None:
    model = tiny_model(word_splitter=splitter)
    kind = make()
    model.resize_token_embeddings(len(kind), mean_resizing=False)
    for text, answer in zip(ODD, Predictor(model, kind)(ODD), strict=True):
        check_answer(text, answer, split_words(text, splitter))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=6), max_size=20))
@example(["", "a b", "", "\u200b"])
def test_words_that_come_split_are_answered_one_by_one_in_the_words_joined_by_spaces(words: list[str]) -> None:
    (answer,) = PREDICTOR([words])
    assert [e["text"] for e in answer["pos"]] == words
    joined = " ".join(filter(None, words))  # an empty word takes no place
    spans, end = [], 0
    for word in words:
        start = joined.index(word, min(end + 1, len(joined)) if end and word else end)
        spans.append((start, start + len(word)))
        end = spans[-1][1]
    check_answer(joined, answer, spans)
    assert all(entry["text"] for entry in answer["ner"])


def test_a_text_of_many_windows_gets_an_answer_for_each_word_and_for_the_text() -> None:
    text = "anna sees the unings of x. " * 60
    check_answer(text, PREDICTOR(text), split_words(text))


# ---- one text, several texts


def test_one_text_gives_one_answer_and_a_list_gives_a_list_in_order() -> None:
    for texts in (TEXTS, tuple(TEXTS), (text for text in TEXTS)):
        answers = PREDICTOR(texts)
        assert isinstance(answers, list)
        for text, answer in zip(TEXTS, answers, strict=True):
            assert_alike(PREDICTOR(text), answer)
    assert PREDICTOR([]) == []


@pytest.mark.parametrize("text", ["", " \t\n\u00a0"])
def test_a_text_without_words_has_an_empty_answer(text: str) -> None:
    assert PREDICTOR(text) == {"ner": [], "pos": [], "sentiment": {"label": None, "score": None}}


@pytest.mark.parametrize("max_tokens", [1, 48, 100_000])
def test_answers_do_not_depend_on_the_other_texts_or_max_tokens(max_tokens: int) -> None:
    other = Predictor(PREDICTOR.model, tokenizer(), max_tokens=max_tokens)
    assert_alike(PREDICTOR(TEXTS), other(TEXTS))
    assert_alike(PREDICTOR(TEXTS)[::-1], other(TEXTS[::-1]))


def test_words_and_the_same_words_in_running_text_are_answered_alike() -> None:
    assert_alike(PREDICTOR("anna loves rome"), PREDICTOR([["anna", "loves", "rome"]])[0])
    assert_alike(PREDICTOR(["bob", ("a", "film")]), PREDICTOR([["bob"], "a film"]))


def test_a_model_in_training_mode_answers_without_dropout() -> None:
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert_alike(PREDICTOR(TEXTS), Predictor(model.train(), tokenizer())(TEXTS))


# ---- tasks


def test_only_the_heads_of_the_tasks_asked_for_are_run() -> None:
    ran: list[str] = []
    predictor = Predictor(tiny_model(), tokenizer())
    for task in TASKS:
        predictor.model.head(task.name).register_forward_hook(lambda *_, name=task.name: ran.append(name))
    answer = predictor("anna", tasks=["sentiment", "pos"])
    assert list(answer) == ["pos", "sentiment"]  # the model's order
    assert sorted(ran) == ["pos", "sentiment"]
    assert_alike({name: PREDICTOR("anna")[name] for name in answer}, answer)


def test_tasks_may_be_any_iterable_of_names_or_empty() -> None:
    assert list(PREDICTOR("anna", tasks=iter(["pos"]))) == ["pos"]
    assert PREDICTOR(["anna", "bob"], tasks=[]) == [{}, {}]


def test_an_unknown_task_is_named_with_those_that_exist_and_the_likely_one() -> None:
    with pytest.raises(ModelError, match=r"`sentimnt`; .*`ner`, `pos`, `sentiment`.* Did you mean `sentiment`"):
        PREDICTOR("anna", tasks=["sentimnt"])


@pytest.mark.parametrize("tasks", ["ner", 5, [5], [None]])
def test_tasks_that_are_no_list_of_names_are_refused(tasks: Any) -> None:
    with pytest.raises(TypeError, match="`tasks` should be a list of names"):
        PREDICTOR("anna", tasks=tasks)


@pytest.mark.parametrize("texts", [None, 5, 2.5, b"anna", bytearray(b"anna"), {"anna": 1}, {"anna"}])
def test_what_is_no_text_and_no_list_is_refused_with_its_type(texts: Any) -> None:
    with pytest.raises(TypeError, match=f"expected a text or a list of texts, but found {type(texts).__name__}"):
        PREDICTOR(texts)


@pytest.mark.parametrize("bad", [3, None, b"anna", ["a", 3], ["a", None], {"a": 1}, [["a"]]])
def test_a_list_with_something_else_in_it_names_its_place(bad: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"text 1 should be a string or a list of words, but it is {bad!r}")):
        PREDICTOR(["anna", bad])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_answers_as_before(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path / "model", family=family)
    assert load(folder, device="cpu")(TEXTS) == Predictor(tiny_model(family), tokenizer())(TEXTS)


def test_a_run_folder_gives_its_model(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ModelError, match=r"no model yet; its training has not finished \(see --resume\)"):
        load(tmp_path)
    shutil.copytree(model_folder, tmp_path / "model")
    assert load(str(tmp_path), device="cpu")(TEXTS) == load(model_folder, device="cpu")(TEXTS)


def test_a_byte_level_tokenizer_reloads_with_its_prefix_space(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", own_tokenizer=byte_level_tokenizer())
    found = load(folder, device="cpu").tokenizer
    assert found(["anna"], is_split_into_words=True)["input_ids"] == found(" anna")["input_ids"]
    assert found(["anna"], is_split_into_words=True)["input_ids"] == found("anna")["input_ids"]


def test_a_model_of_text_tasks_or_token_tasks_only_answers_too() -> None:
    assert list(Predictor(tiny_model(tasks=[SENTIMENT]), tokenizer())("anna")) == ["sentiment"]
    assert list(Predictor(tiny_model(tasks=[POS]), tokenizer())("anna")) == ["pos"]


@pytest.mark.parametrize(("option", "value"), [("mixed_precision", "fp16"), ("max_tokens", 0)])
def test_an_option_that_is_not_known_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{option} is {value!r}; expected"):
        Predictor(PREDICTOR.model, tokenizer(), **{option: value})
