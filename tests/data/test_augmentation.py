"""Rows that are changed as they come: labels stay with their words, and seed, step and row say what is drawn."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_steps import NER, POS, TASKS, encoded, text_rows, word_rows
from tiny import byte_level_tokenizer, tokenizer

from nlp_mtl.data.augmentation import Augmentation, Augmenter, with_case, with_typo
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.tokenization import encode_words
from nlp_mtl.tasks import MISSING, iob2_break, iob_spans

ROWS, TEXTS = word_rows(), text_rows()
WORDS = encoded("words", ROWS, [NER, POS])
SOME = st.builds(
    Augmentation,
    rows=st.sampled_from([0.5, 1.0]),
    word_dropout=st.sampled_from([0.0, 0.3, 1.0]),
    case_noise=st.sampled_from([0.0, 0.5]),
    typos=st.sampled_from([0.0, 0.5]),
    entity_swap=st.sampled_from([0.0, 0.5, 1.0]),
)


def words_of(rows: Sequence[int]) -> list[tuple[list[str], None]]:
    return [(ROWS[row]["tokens"], None) for row in rows]


def augmenter(settings: Augmentation, seed: int = 0, split: EncodedSplit = WORDS) -> Augmenter:
    return Augmenter(split, words_of, TASKS, tokenizer(), settings, seed=seed, place=0)


def changed(settings: Augmentation, step: int = 3, seed: int = 0) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    rows = np.arange(len(WORDS))
    batch = dict(WORDS.batch(rows))
    return batch, augmenter(settings, seed)(step, rows, batch)


@settings(max_examples=60, deadline=None)
@given(SOME, st.integers(0, 1000), st.integers(0, 5))
def test_each_word_has_one_label_a_task_and_tags_stay_iob2(some: Augmentation, step: int, seed: int) -> None:
    before, after = changed(some, step, seed)
    for row in range(len(WORDS)):
        starts, pieces = after["starts"][row], after["pieces"][row]
        assert all(one < other for one, other in pairwise([*starts, len(pieces)]))
        for task in (NER, POS):
            target = after[f"labels/{task.name}"][row]
            assert len(target) == (len(starts) if before[f"labels/{task.name}"][row] else 0)
        tags = [NER.labels[one] if one != MISSING else "O" for one in after["labels/ner"][row]]
        assert iob2_break(tags) is None
        kinds = [kind for kind, _, _ in iob_spans(tags)]
        was = [NER.labels[one] for one in before["labels/ner"][row]]
        assert kinds == [kind for kind, _, _ in iob_spans(was)]


@settings(max_examples=30, deadline=None)
@given(SOME, st.integers(0, 1000))
def test_what_is_drawn_follows_from_seed_step_and_row_alone(some: Augmentation, step: int) -> None:
    _, together = changed(some, step)
    for row in range(len(WORDS)):
        alone = augmenter(some)(step, np.array([row]), dict(WORDS.batch([row])))
        assert {name: values[0] for name, values in alone.items()} == {
            name: values[row] for name, values in together.items()
        }


def test_rows_are_changed_anew_each_time_they_come_and_with_each_seed() -> None:
    some = Augmentation(word_dropout=0.3)
    found = [changed(some, step, seed)[1]["pieces"] for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert found[0] != found[1] != found[2] != found[0]


def test_the_columns_that_were_given_stay_as_they_are() -> None:
    before, _ = changed(Augmentation(word_dropout=1.0, entity_swap=1.0))
    assert before == dict(WORDS.batch(np.arange(len(WORDS))))


def test_a_share_of_rows_is_changed() -> None:
    some = Augmentation(rows=0.25, word_dropout=1.0)
    changes = [
        one != other
        for step in range(100)
        for one, other in zip(*(columns["pieces"] for columns in changed(some, step)), strict=True)
        if one
    ]
    assert 0.2 < np.mean(changes) < 0.3


def test_a_hidden_word_is_one_mask_and_keeps_its_label() -> None:
    before, after = changed(Augmentation(word_dropout=1.0))
    assert all(set(pieces) <= {tokenizer().mask_token_id} for pieces in after["pieces"])
    assert [len(pieces) for pieces in after["pieces"]] == [len(starts) for starts in before["starts"]]
    assert after["labels/ner"] == before["labels/ner"]


def test_case_and_typos_change_pieces_and_no_labels() -> None:
    rows = np.arange(len(WORDS))
    cased = byte_level_tokenizer()
    plain = [encode_words(cased, [row["tokens"]])[0][0] for row in ROWS]
    for some in (Augmentation(case_noise=1.0), Augmentation(typos=1.0)):
        made = Augmenter(WORDS, words_of, TASKS, cased, some, seed=0, place=0)
        before = dict(WORDS.batch(rows))
        after = made(1, rows, before)
        assert after["pieces"] != plain
        assert after["labels/pos"] == before["labels/pos"]


def test_a_swapped_entity_is_one_of_the_training_rows_with_all_its_labels() -> None:
    some = Augmentation(entity_swap=1.0)
    made = augmenter(some)
    mentions = {
        (kind, tuple(ROWS[row]["tokens"][start:stop]), tuple((ROWS[row]["upos"] or [])[start:stop]))
        for kind, found in made.mentions.items()
        for row, start, stop in found
    }
    seen = set()
    for step in range(40):
        _, after = changed(some, step)
        for row in range(len(WORDS)):
            tags = [NER.labels[one] if one != MISSING else "O" for one in after["labels/ner"][row]]
            parts = [POS.labels[one] if one != MISSING else None for one in after["labels/pos"][row]]
            for kind, start, stop in iob_spans(tags):
                starts = [*after["starts"][row], len(after["pieces"][row])]
                pieces = after["pieces"][row][starts[start] : starts[stop]]
                (found,) = {
                    words for of, words, labels in mentions
                    if of == kind and encode_words(tokenizer(), [list(words)])[0][0] == pieces
                    and labels == tuple(parts[start:stop])
                }  # fmt: skip
                seen.add((kind, found))
    assert len(seen) > len({kind for kind, _ in seen})


def test_texts_of_pairs_stay_apart() -> None:
    pairs = encoded("texts", TEXTS, [])
    second = [f"other {n} teas" for n in range(len(TEXTS))]

    def both(rows: Sequence[int]) -> list[tuple[list[str], list[str]]]:
        return [((TEXTS[row]["text"] or "").split(), second[row].split()) for row in rows]

    for dropout in (0.0, 0.5, 1.0):
        made = Augmenter(pairs, both, (), tokenizer(), Augmentation(typos=1e-9, word_dropout=dropout), seed=0, place=0)
        batch = {"pieces": [[1]] * len(TEXTS), "starts": [[0]] * len(TEXTS), "second": [[1]] * len(TEXTS)}
        found = made(0, range(len(TEXTS)), batch)
        for row, (first, other) in enumerate(both(range(len(TEXTS)))):
            (border,) = found["second"][row]
            starts = found["starts"][row]
            assert len(starts) == len(first) + len(other)
            assert (starts[len(first)] if other else len(found["pieces"][row])) == border
            if not dropout:
                assert found["pieces"][row] == [
                    *encode_words(tokenizer(), [first])[0][0], *encode_words(tokenizer(), [other])[0][0]
                ]  # fmt: skip


@given(st.one_of(st.text(max_size=12), st.text("ab'3", max_size=12)), st.integers(0, 1000))
def test_a_typo_changes_each_word_of_four_letters_but_the_first_and_the_last_of_them(word: str, seed: int) -> None:
    found = with_typo(word, np.random.default_rng(seed))
    letters = [one for one in word if one.isalpha()]
    if len(letters) < 4:
        assert found == word
        return
    assert found != word
    left = [one for one in found if one.isalpha()]
    assert (left[0], left[-1]) == (letters[0], letters[-1])
    assert abs(len(left) - len(letters)) <= 1
    assert set(left) <= set(letters)
    assert [one for one in found if not one.isalpha()] == [one for one in word if not one.isalpha()]


@pytest.mark.parametrize("word", ["1234", "10:30", "....", "3rd", "a-b-c"])
def test_numbers_and_signs_get_no_typos(word: str) -> None:
    assert {with_typo(word, np.random.default_rng(seed)) for seed in range(50)} == {word}


def test_all_kinds_of_typos_occur() -> None:
    found = {with_typo("abcdef", np.random.default_rng(seed)) for seed in range(300)}
    assert {"acbdef", "acdef", "abbcdef", "aecdef"} <= found


@pytest.mark.parametrize(
    ("word", "expected"),
    [("don't", {"don't", "DON'T", "Don't"}), ("3rd", {"3rd", "3RD"}), ("ßa", {"ßa", "SSA", "Ssa"}), ("", {""})],
)
def test_case_is_that_of_all_letters_or_of_the_first_alone(word: str, expected: set[str]) -> None:
    assert {with_case(word, np.random.default_rng(seed)) for seed in range(50)} == expected


def test_nothing_is_no_augmentation() -> None:
    assert not Augmentation()
    assert not Augmentation(rows=0.5)
    assert Augmentation(typos=0.1)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_row_without_any_change_is_as_it_was(row: int) -> None:
    batch = dict(WORDS.batch([row]))
    assert augmenter(Augmentation(typos=1e-12))(0, [row], batch) == batch
