"""Mended encodings: each word lies where it lay, whatever else was mended in the text."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.cleaning.mended import difference, mended_edits
from nlp_mtl.words import split_words

ftfy = pytest.importorskip("ftfy")

MENDED = Cleaning(fix_encoding=True)


def misread(text: str, encoding: str = "sloppy-windows-1252") -> str:
    return text.encode().decode(encoding)


SOUND = ["Anna", "visits", "Berlin,", "naïve", "Ünal", "now?", "Привет", "東京"]
WRONG = [
    *map(misread, ["schön", "it’s", "“so”", "Привет", "你好世界", "price\xa010", "Škoda", "😀", "für"]),
    *(misread(word, "latin-1") for word in ["schön", "你好世界", "à"]),
    "Å koda", "PriceÂ 10.", "voilÃ le", "â€œquotedâ€\ufffd", misread(misread("schön")), "it\x92s",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from([*SOUND, *WRONG])).map(" ".join)


@settings(max_examples=300)
@given(TEXTS)
@example("PriceÂ 10. " + "Anna visits Berlin. " * 100 + "naÃ¯ve end")
@example("Å koda is a car and Peter drives it, schÃ¶n")
def test_words_stay_apart_whatever_is_mended_around_them(text: str) -> None:
    mended = ftfy.fix_encoding(text)
    assert MENDED.text(text) == mended
    for splitter in ("whitespace", "unicode"):
        words, spans = MENDED.words(text, splitter)
        assert words == [mended[start:end] for start, end in split_words(mended, splitter)]
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


@pytest.mark.parametrize("encoding", ["latin-1", "sloppy-windows-1252", "sloppy-windows-1251", "macroman", "cp437"])
def test_words_that_no_space_parts_are_led_back_character_by_character(encoding: str) -> None:
    text = "你好世界，今天天气很好。"
    words, spans = MENDED.words(misread(text, encoding), "unicode")
    assert words == list(text)
    assert spans == [(place, place + 3) for place in range(0, 3 * len(text), 3)]


def test_words_that_were_read_wrongly_twice_are_led_back_too() -> None:
    once = misread(text := "你好世界，今天天气很好。")
    words, spans = MENDED.words(misread(once), "unicode")
    assert words == list(text)
    lengths = [len(misread(once[place : place + 3])) for place in range(0, len(once), 3)]
    assert [end - start for start, end in spans] == lengths
    assert spans[-1][1] == sum(lengths)


def test_spaces_and_bytes_that_were_lost_do_not_join_words() -> None:
    words, _ = MENDED.words(misread("Россия и Рим").replace("\xa0", " "), "unicode")
    assert words == ["Россия", "и", "Рим"]
    words, spans = MENDED.words("ä½\ufffdå¥½ä¸–ç•Œ", "unicode")
    assert words == ["\ufffd", "好", "世", "界"]
    assert spans == [(0, 3), (3, 6), (6, 9), (9, 12)]


def test_a_long_text_is_changed_where_it_is_wrong_and_nowhere_else() -> None:
    text = "Å koda is a car, schÃ¶n. " * 4000
    edits = list(mended_edits(text, ftfy.fix_encoding(text)))
    assert len(edits) == 8000
    assert {(text[start:end], replacement) for start, end, replacement in edits} == {("Å ", "Š"), ("Ã¶", "ö")}


@given(st.text("aÃé ?", max_size=8), st.text("aÃé ?", max_size=8))
def test_edits_lead_from_one_text_to_another_whatever_they_are(text: str, other: str) -> None:
    for find in (mended_edits, partial(difference, 0)):
        edits, place, parts = list(find(text, other)) if text else [], 0, []
        for start, end, replacement in edits:
            assert place <= start < end <= len(text)
            parts += [text[place:start], replacement]
            place = end
        assert "".join([*parts, text[place:]]) == (other if text else "")
