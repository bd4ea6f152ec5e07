"""A vocabulary cut down to the words of some data: the same pieces and the same answers for them."""

import json
import random
import time
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_steps import TASKS
from stock_models import tiny_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from nlp_mtl import ModelError
from nlp_mtl.compression.pieces import needed
from nlp_mtl.compression.vocabulary import (
    differences,
    ids_to_keep,
    keep_vocabulary,
    pieces_of,
    smaller_vocabulary,
)
from nlp_mtl.data.tokenization import encode_words
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = {"bos_token": "<s>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>",
         "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip


def corpus(seed: int, count: int) -> list[str]:
    """Words that share stems and endings, some of letters that a vocabulary of other words may lack."""
    random_ = random.Random(seed)
    stems = ["walk", "talk", "bake", "naïve", "straß", "東京", "co-op", "mmm", "abab", "e\u0301t", "x" * 12, "<s>"]
    ends = ["", "s", "ed", "ing", "er", "able", "e", "ababab", "🙂", ".", "1234"]
    return [random_.choice(stems) + random_.choice(ends) + random_.choice(ends) for _ in range(count)]


def trained(model: Any, trainer: Any, pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(corpus(0, 400), trainer)
    return backend


def state(backend: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(backend.to_str())["model"]
    return found


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """Of each kind of model, some as families have them and some as the library alone makes them."""
    quiet = {"special_tokens": SPECIALS, "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=True)
    scored = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **quiet)
    unigram = trained(models.Unigram(), scored, pre_tokenizers.Metaspace())
    bpe = trained(models.BPE(), trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, **quiet), by_bytes)
    letters = trained(
        models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=90, **quiet), pre_tokenizers.Whitespace()
    )
    pieces = trained(
        models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=110, **quiet),
        pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True),
    )  # fmt: skip
    words = trained(
        models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(**quiet), pre_tokenizers.WhitespaceSplit()
    )
    if kind == "roberta":
        one = state(bpe)
        merges = [tuple(pair) for pair in one["merges"]]
        return RobertaTokenizer(vocab=one["vocab"], merges=merges, add_prefix_space=True)
    if kind == "xlm-roberta":
        return XLMRobertaTokenizer(vocab=[tuple(entry) for entry in state(unigram)["vocab"]])
    if kind == "bert":
        return BertTokenizer(vocab=state(pieces)["vocab"], **{key: NAMES[key] for key in NAMES if key[0] in "pcsum"})
    backends = {"unigram": unigram, "bytes": bpe, "letters": letters, "wordpiece": pieces, "words": words}
    return PreTrainedTokenizerFast(tokenizer_object=backends[kind], **NAMES)


KINDS = ["unigram", "bytes", "letters", "wordpiece", "words", "roberta", "xlm-roberta", "bert"]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 9999), count=st.integers(1, 60), keep_characters=st.booleans(), size=st.integers(0, 120))
@settings(max_examples=12, deadline=None)
def test_texts_of_these_words_become_the_same_pieces(
    kind: str, seed: int, count: int, keep_characters: bool, size: int
) -> None:
    whole, words = tokenizer(kind), [*corpus(0, 1), *corpus(seed, count)]  # the first is known to all of them
    found = smaller_vocabulary(whole, set(words), keep_characters=keep_characters, size=size)
    texts = [words, words[::-1], words[: count // 2]]
    pieces, starts = encode_words(whole, texts)
    smaller_pieces, smaller_starts = encode_words(found.tokenizer, texts)
    assert [[found.ids[one] for one in ids] for ids in pieces] == smaller_pieces
    assert starts == smaller_starts
    # What stands around texts, and by which names special tokens go.
    around, smaller_around = (one(words, is_split_into_words=True)["input_ids"] for one in (whole, found.tokenizer))
    assert [found.ids[one] for one in around] == smaller_around
    assert found.tokenizer.special_tokens_map == whole.special_tokens_map
    assert sorted(found.ids.values()) == list(range(len(found.tokenizer)))
    assert [whole.convert_ids_to_tokens(old) for old in found.ids] == found.tokenizer.convert_ids_to_tokens(
        [*found.ids.values()]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_few_words_need_few_pieces(kind: str) -> None:
    few = smaller_vocabulary(tokenizer(kind), {"walking", "talked"}, keep_characters=False)
    needed = {one for ids in pieces_of(tokenizer(kind), ["walking", "talked"]) for one in ids}
    assert needed <= {*few.ids}
    # Besides: special tokens, Unigram's lowest score, what a piece was joined from, and all characters of a byte-level
    # vocabulary without an unknown token.
    names = [tokenizer(kind).convert_ids_to_tokens(one) for one in {*few.ids} - needed]
    parts = [name for name in names if any(name in tokenizer(kind).convert_ids_to_tokens(one) for one in needed)]
    by_bytes = [name for name in names if len(name) == 1] if kind in ("bytes", "roberta") else []
    assert len({*names} - {*parts} - {*by_bytes} - {*SPECIALS}) <= (kind in ("unigram", "xlm-roberta"))
    assert len(few.ids) < len(tokenizer(kind))


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"words"}))
def test_with_all_characters_no_other_word_of_these_is_unknown(kind: str) -> None:
    whole = tokenizer(kind)
    others = sorted({*corpus(0, 400)} - {"walks"})
    found = smaller_vocabulary(whole, {"walks"}, keep_characters=True)
    was_unknown = {
        word for word, ids in zip(others, pieces_of(whole, others), strict=True) if whole.unk_token_id in ids
    }
    now = zip(others, pieces_of(found.tokenizer, others), strict=True)
    assert {word for word, ids in now if found.tokenizer.unk_token_id in ids} <= was_unknown


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_keeps_the_first_pieces_besides_those_that_are_needed(kind: str) -> None:
    whole, words = tokenizer(kind), {*corpus(0, 1)}
    few = smaller_vocabulary(whole, words, keep_characters=False)
    more = smaller_vocabulary(whole, words, keep_characters=False, size=len(few.ids) + 8)
    added = {*more.ids} - {*few.ids}
    # What some of the eight were joined from comes along.
    assert 8 <= len(added) <= (8 if kind not in ("bytes", "letters", "roberta") else 24)
    assert {*[one for one in sorted(whole.get_vocab().values()) if one not in few.ids][:8]} <= added
    assert {*few.ids} < {*more.ids}
    assert len(smaller_vocabulary(whole, words, keep_characters=False, size=9999).ids) == len(whole)


def test_a_size_spends_no_places_on_unused_ones_while_there_are_others() -> None:
    vocab = state(tokenizer("bert").backend_tokenizer)["vocab"]
    names = sorted(vocab, key=lambda piece: vocab[piece])
    unused = [f"[unused{number}]" for number in range(9)]
    names = [*names[:5], *unused, *names[5:]]
    whole = BertTokenizer(vocab={piece: place for place, piece in enumerate(names)}, **NAMES)
    few = smaller_vocabulary(whole, {"walking"}, keep_characters=False)
    more = smaller_vocabulary(whole, {"walking"}, keep_characters=False, size=len(few.ids) + 8)
    assert not {*unused} & {*more.tokenizer.get_vocab()}
    assert len(more.ids) == len(few.ids) + 8
    most = smaller_vocabulary(whole, {"walking"}, keep_characters=False, size=len(whole) - 2)
    assert {*unused} - {*most.tokenizer.get_vocab()} == {*unused[-2:]}


def test_a_long_unknown_word_takes_no_long_time_and_keeps_nothing() -> None:
    whole = tokenizer("bert")
    started = time.perf_counter()
    found = smaller_vocabulary(whole, {"baked", "walk" * 5_000}, keep_characters=False)
    assert time.perf_counter() - started < 10  # it would be hours, if all its parts were looked at
    assert found.ids == smaller_vocabulary(whole, {"baked"}, keep_characters=False).ids


@pytest.mark.parametrize(
    ("word", "kept"),
    [("abcdq", {"abc", "##cd"}), ("abcd" * 9 + "q", set()), ("<s>" + "abcd" * 7 + "q", {"abc", "##cd"})],
    ids=["tried", "too long", "beside a special token"],
)
def test_of_unknown_words_the_pieces_stay_that_were_tried(word: str, kept: set[str]) -> None:
    model = {"type": "WordPiece", "vocab": {"<unk>": 0, "abc": 1, "##cd": 2, "##ef": 3}, "unk_token": "<unk>",
             "continuing_subword_prefix": "##", "max_input_chars_per_word": 30}  # fmt: skip
    given = {"model": model, "added_tokens": [{"content": "<s>", "id": 4}]}
    assert needed(given, [], [word], characters=False) == kept | {"<unk>"}


def test_words_that_are_all_unknown_leave_nothing() -> None:
    with pytest.raises(ModelError, match="of 2 words none is known to the tokenizer"):
        smaller_vocabulary(tokenizer("words"), {"qqq", "東"}, keep_characters=False)


def test_what_becomes_of_other_words_is_counted() -> None:
    whole = tiny.tokenizer()
    words = {"anna", "loves", "unly"}
    bare = smaller_vocabulary(whole, words, keep_characters=False)
    counts = {"anna": 5, "rome": 3, "uning": 2, "zzz": 4, "unly": 1, "txx": 7}
    # rome and txx are unknown now; uning begins like unly and is unknown as a whole; zzz always was.
    assert differences(whole, bare, counts) == {"words": 22, "otherwise": 12, "unknown": 12}
    letters = smaller_vocabulary(whole, words, keep_characters=True)
    assert differences(whole, letters, counts) == {"words": 22, "otherwise": 5, "unknown": 5}  # t, x, ##x are there


def logits_of(model: MultiTaskModel, pieces: list[int], around: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[around.cls_token_id, *pieces, around.sep_token_id, around.pad_token_id]])
    mask = (ids != around.pad_token_id).long()
    with torch.no_grad():
        found: dict[str, torch.Tensor] = model(ids, mask)
    return found


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_of_these_words_are_the_same_bit_for_bit(family: str) -> None:
    model, whole = tiny_model(family), tiny.tokenizer()
    words = ["anna", "sees", "unly", "rome", "zzz", "."]
    found = smaller_vocabulary(whole, words, keep_characters=False, kept_ids=ids_to_keep(model))
    smaller = keep_vocabulary(model, found.ids)
    assert smaller.get_input_embeddings().weight.shape[0] == smaller.config.encoder_config.vocab_size == len(found.ids)
    assert len(found.ids) < len(whole)
    for part in (words, words[:1], words[::-1]):
        pieces, smaller_pieces = (encode_words(one, [part])[0][0] for one in (whole, found.tokenizer))
        expected, now = logits_of(model, pieces, whole), logits_of(smaller, smaller_pieces, found.tokenizer)
        assert all(torch.equal(one, now[task]) for task, one in expected.items())
    texts = ["anna sees rome .", "unly zzz", ""]
    layouts = {one.packs("auto") for one in (model, smaller)}
    assert len(layouts) == 1
    assert Predictor(smaller, found.tokenizer)(texts) == Predictor(model, whole)(texts)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_positions_that_start_behind_the_padding_token_stay(family: str) -> None:
    config = tiny.encoder_config(family)
    config.pad_token_id, config.vocab_size = 1, len(tokenizer("roberta"))
    torch.manual_seed(0)
    model = from_encoder(AutoModel.from_config(config, dtype=torch.float32), TASKS, max_length=16).eval()
    whole = tokenizer("roberta")
    words = ["walks", "baker"]
    found = smaller_vocabulary(whole, words, keep_characters=False, kept_ids=ids_to_keep(model))
    smaller = keep_vocabulary(model, found.ids)
    assert smaller.config.encoder_config.pad_token_id == 1
    pieces, smaller_pieces = (encode_words(one, [words])[0][0] for one in (whole, found.tokenizer))
    expected, now = logits_of(model, pieces, whole), logits_of(smaller, smaller_pieces, found.tokenizer)
    assert all(torch.equal(one, now[task]) for task, one in expected.items())
    with pytest.raises(ModelError, match="positions are counted from the padding token's id"):
        keep_vocabulary(model, {old: new for new, old in enumerate([0, 2, 3, 4])})


def test_special_tokens_keep_their_meaning_in_the_configuration() -> None:
    model, whole = tiny_model("modernbert"), tiny.tokenizer()
    found = smaller_vocabulary(whole, {"anna"}, keep_characters=False, kept_ids=ids_to_keep(model))
    config = keep_vocabulary(model, found.ids).config.encoder_config
    given = model.config.encoder_config
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        assert getattr(config, key) == found.ids[getattr(given, key)]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (models.BPE(dropout=0.1, vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>"), "by chance"),
        (models.BPE(end_of_word_suffix="</w>", vocab={"<unk>": 0, "a</w>": 1}, merges=[], unk_token="<unk>"), "marks"),
        (models.BPE(continuing_subword_prefix="##", vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>"), "marks"),
    ],
)
def test_a_tokenizer_that_cannot_be_cut_exactly_is_refused(model: Any, why: str) -> None:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    given = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<unk>", unk_token="<unk>")
    with pytest.raises(ModelError, match=f"cannot be made smaller so that it says the same: .*{why}"):
        smaller_vocabulary(given, {"a"}, keep_characters=True)
