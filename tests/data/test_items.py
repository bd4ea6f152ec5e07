import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_steps import TASKS, framing, splits
from tiny import CLS, PAD, SEP, byte_level_tokenizer, tokenizer

from nlp_mtl.data.batches import collate
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.items import Framing, frame, item_lengths, read_items, windowed, word_positions

BARE = Framing([], [], PAD, 8, 2)  # of a tokenizer without special tokens


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


def test_a_frame_holds_the_special_tokens_and_what_remains_for_the_text() -> None:
    found = frame(tokenizer(), 16, 4)
    assert (found.prefix, found.suffix, found.pad_id, found.capacity) == ([CLS], [SEP], PAD, 14)


def test_a_byte_level_frame_is_found_too() -> None:
    assert frame(byte_level_tokenizer(), 16, 4)[:2] == ([CLS], [SEP])


def test_a_tokenizer_without_special_tokens_has_an_empty_frame() -> None:
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    assert frame(bare, 16, 4)[:2] == ([], [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=60), st.integers(1, 20), st.integers(0, 12))
def test_shares_of_a_rows_windows_sum_to_one_and_each_word_is_answered_once(
    pieces_a_word: list[int], capacity: int, overlap: int
) -> None:
    ends = np.cumsum(pieces_a_word, dtype=int)
    starts = (ends - pieces_a_word).tolist()
    around = Framing([CLS], [SEP], PAD, capacity + 2, overlap)
    items = windowed(3, list(range(sum(pieces_a_word))), starts, {}, around)
    assert sum(one.share for one in items) == pytest.approx(1)
    assert {one.place for one in items} == {3}
    answered = [word for one in items for word in range(one.window.first_word, one.window.last_word)]
    assert answered == list(range(len(starts)))
    assert (item_lengths(items, around) <= around.max_length).all()
    for one in items:  # the first piece of every answered word is really read
        for word, place in zip(
            range(one.window.first_word, one.window.last_word), word_positions(one, around), strict=True
        ):
            assert [CLS, *one.pieces[one.window.start : one.window.stop], SEP][place] == starts[word]


def test_rows_are_read_in_the_order_asked_for_and_as_often(data: list[EncodedSplit]) -> None:
    words, rows = data[0], [4, 0, 4]
    items = read_items(words, np.array(rows), TASKS, framing(), first_place=10)
    assert [one.place for one in items] == [10, 11, 12]
    assert [list(one.pieces) for one in items] == [words.rows[row]["pieces"] for row in rows]
    assert set(items[0].labels) == {"ner", "pos"}


def test_lengths_are_those_of_the_tensors(data: list[EncodedSplit]) -> None:
    for split in data:
        for around in (framing(), BARE):
            for one in read_items(split, range(len(split)), TASKS, around):
                assert item_lengths([one], around)[0] == collate([one], TASKS, around).inputs["input_ids"].shape[1]
