from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CLS, SEP, UNK, VOCABULARY, WORDS, byte_level_tokenizer, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from nlp_mtl.data.tokenization import encode_words, special_ids, unknown_id, windows

WORD_PIECE = tokenizer()


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts a space before every word, as the package asks of all of them."""
    made = byte_level_tokenizer()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


BYTE_LEVEL = byte_level()
TOKENIZERS = {"word pieces": WORD_PIECE, "bytes": BYTE_LEVEL}

texts = st.lists(
    st.lists(st.sampled_from([*WORDS, "tt", "unknown", "é", "🙂", "[SEP]", "日本", "a-b"]), max_size=8), max_size=4
)
any_words = st.lists(st.lists(st.text(st.characters(), max_size=6), max_size=6), max_size=3)


# Words to pieces


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=texts)
def test_pieces_and_starts_are_those_of_the_tokenizer(kind: str, texts: list[list[str]]) -> None:
    pieces, starts = encode_words(TOKENIZERS[kind], texts)
    assert len(pieces) == len(starts) == len(texts)
    for words, ids, firsts in zip(texts, pieces, starts, strict=True):
        if words:
            stock = TOKENIZERS[kind](words, is_split_into_words=True, add_special_tokens=False)
            assert ids == stock["input_ids"]
            assert firsts == [stock.word_ids().index(word) for word in range(len(words))]
        else:
            assert ids == firsts == []


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(texts=any_words)
def test_every_word_has_its_own_pieces_whatever_its_characters(kind: str, texts: list[list[str]]) -> None:
    pieces, starts = encode_words(TOKENIZERS[kind], texts)
    for words, ids, firsts in zip(texts, pieces, starts, strict=True):
        assert len(firsts) == len(words)
        if words:
            assert firsts[0] == 0
            assert all(left < right for left, right in pairwise([*firsts, len(ids)]))
        else:
            assert ids == []


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=any_words)
def test_a_text_has_the_same_pieces_alone_and_among_others(kind: str, texts: list[list[str]]) -> None:
    together = encode_words(TOKENIZERS[kind], texts)
    for place, text in enumerate(texts):
        alone = encode_words(TOKENIZERS[kind], [text])
        assert (alone[0][0], alone[1][0]) == (together[0][place], together[1][place])


@pytest.mark.parametrize("nothing", ["", " ", "\u200b", "\x00", "\x07", "\u00ad", "\ufe0f", "\t"])
def test_a_word_that_becomes_no_piece_still_gets_an_answer(nothing: str) -> None:
    for words in ([nothing], ["anna", nothing], [nothing, "anna"], ["anna", nothing, nothing, "bob"]):
        pieces, starts = encode_words(WORD_PIECE, [words, ["tea"]])
        assert starts[0] == list(range(len(words)))
        assert pieces[0] == [VOCABULARY.get(word, UNK) for word in words]
        assert (pieces[1], starts[1]) == ([VOCABULARY["tea"]], [0])
    # The next word's pieces are all its own.
    assert encode_words(WORD_PIECE, [[nothing, "tt"]]) == ([[UNK, VOCABULARY["t"], VOCABULARY["##t"]]], [[0, 1]])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_lone_surrogates_are_read_as_an_unknown_character(kind: str) -> None:
    broken = encode_words(TOKENIZERS[kind], [["anna", "b\ud83db", "\udc00"]])
    assert broken == encode_words(TOKENIZERS[kind], [["anna", "b\ufffdb", "\ufffd"]])
    assert len(broken[1][0]) == 3


def test_no_text_is_no_pieces() -> None:
    assert encode_words(WORD_PIECE, []) == ([], [])
    assert encode_words(WORD_PIECE, [[]]) == ([[]], [[]])


def test_texts_are_never_cut_nor_padded_whatever_the_tokenizer_did_before() -> None:
    made = tokenizer()
    made.model_max_length = 4
    made.backend_tokenizer.enable_truncation(3)
    made.backend_tokenizer.enable_padding(length=50)
    pieces, starts = encode_words(made, [["tea"] * 30, ["a"]])
    assert [len(ids) for ids in pieces] == [30, 1]
    assert [len(firsts) for firsts in starts] == [30, 1]


def test_a_tokenizer_without_an_unknown_token_uses_another_special_one() -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "<m>": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<m>")
    assert unknown_id(made) == 1
    assert encode_words(made, [["a", "é", "a"]]) == ([[0, 1, 0]], [[0, 1, 2]])
    assert unknown_id(PreTrainedTokenizerFast(tokenizer_object=backend)) == 0


# Special tokens


def test_special_tokens_before_and_after_a_text_are_found() -> None:
    assert special_ids(WORD_PIECE) == ([CLS], [SEP])
    assert special_ids(BYTE_LEVEL) == ([CLS], [SEP])


def test_a_tokenizer_without_special_tokens_has_none() -> None:
    backend = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    assert special_ids(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")) == ([], [])


def test_prefix_text_and_suffix_are_what_the_tokenizer_makes() -> None:
    for made in TOKENIZERS.values():
        prefix, suffix = special_ids(made)
        words = ["anna", "sees", "rome"]
        [pieces], _ = encode_words(made, [words])
        assert [*prefix, *pieces, *suffix] == made(words, is_split_into_words=True)["input_ids"]


def test_stock_roberta_tokenizers_are_understood() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    made = RobertaTokenizer(vocab=vocabulary, merges=[], add_prefix_space=True)
    assert special_ids(made) == ([0], [2])
    _, starts = encode_words(made, [["ab", "c"]])
    assert starts == [[0, 3]]  # a space goes before each word


# Windows


@st.composite
def long_texts(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    """Word starts, pieces, capacity and overlap."""
    sizes = draw(st.lists(st.one_of(st.just(1), st.integers(1, 4), st.integers(1, 40)), max_size=60))
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return starts, sum(sizes), draw(st.integers(1, 30)), draw(st.integers(0, 40))


@settings(max_examples=400, deadline=None)
@given(long_texts())
def test_each_word_is_answered_by_one_window_that_reads_it(text: tuple[list[int], int, int, int]) -> None:
    starts, num_pieces, capacity, overlap = text
    found = windows(starts, num_pieces, capacity, overlap)
    owned = [word for window in found for word in range(window.first_word, window.last_word)]
    assert owned == list(range(len(starts)))
    ends = [*starts[1:], num_pieces]
    for window in found:
        assert 0 <= window.stop - window.start <= capacity
        for word in range(window.first_word, window.last_word):
            assert window.start <= starts[word] < window.stop
            if ends[word] - starts[word] <= capacity:
                assert ends[word] <= window.stop
            elif len(starts) > 1:  # too long for any window: it gets one of its own, up to the brim
                assert window.stop - window.start == capacity


@settings(max_examples=400, deadline=None)
@given(long_texts())
def test_windows_go_forward_begin_at_words_and_overlap_no_more_than_asked(
    text: tuple[list[int], int, int, int],
) -> None:
    starts, num_pieces, capacity, overlap = text
    found = windows(starts, num_pieces, capacity, overlap)
    assert len(found) <= max(1, len(starts))
    for left, right in pairwise(found):
        assert left.start < right.start
        assert left.stop < right.stop
        assert right.start in starts
        assert left.stop - right.start <= min(overlap, capacity // 2)
    if all(end - start <= capacity for start, end in pairwise([*starts, num_pieces])):
        read = {piece for window in found for piece in range(window.start, window.stop)}
        assert read == set(range(num_pieces))


def test_a_text_that_fits_is_one_window() -> None:
    assert windows([0, 2, 3], 5, 5, 2) == [(0, 5, 0, 3)]
    assert windows([], 0, 5, 2) == [(0, 0, 0, 0)]


def test_neighbouring_windows_share_pieces_and_each_answers_its_half_of_them() -> None:
    found = windows(list(range(20)), 20, 8, 4)
    assert found == [(0, 8, 0, 6), (4, 12, 6, 10), (8, 16, 10, 14), (12, 20, 14, 20)]


def test_a_word_longer_than_a_window_is_read_from_its_start() -> None:
    assert windows([0], 50, 8, 4) == [(0, 8, 0, 1)]
    assert (3, 11, 3, 4) in windows([0, 1, 2, 3, 40], 41, 8, 0)


def test_a_very_long_text_is_cut_in_one_pass() -> None:
    count = 200_000
    found = windows(list(range(count)), count, 510, 64)
    assert len(found) == pytest.approx(count / (510 - 64), rel=0.01)
