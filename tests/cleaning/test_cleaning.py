"""Words of cleaned texts lie where they lie in the text that was given."""

from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlp_mtl.cleaning.cleaning import NOTHING, Cleaning
from nlp_mtl.words import WORD_SPLITTERS, split_words

CLEANINGS = st.builds(
    Cleaning,
    fix_encoding=st.booleans() if find_spec("ftfy") else st.just(False),
    remove_html=st.sampled_from([False, True, "escaped"]),
    normalize_unicode=st.sampled_from([None, "NFC", "NFKC", "NFKD"]),
    remove_control_characters=st.booleans(),
    replace_urls=st.sampled_from([None, "", "URL"]),
    replace_usernames=st.sampled_from([None, "@user"]),
    remove_stop_words=st.sampled_from([(), ("a", "the")]),
    lowercase=st.booleans(),
    remove_punctuation=st.booleans(),
    normalize_white_space=st.booleans(),
)
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from([
            "<b>", "</p>", "&eacute;", "&lt;i&gt;", " ", "\t", "½", "ﬁ", "İ", "\u200b", "e\u0301", "東京", "@bob",
            "http://x.org/a", "The a", "...", "don't", "schÃ¶n", "Å koda",
        ]),
    )
).map("".join)  # fmt: skip


@settings(max_examples=300)
@given(TEXTS, CLEANINGS, st.sampled_from([*WORD_SPLITTERS]))
@example("<p>½ cup</p> of &frac12; ﬁne", Cleaning(remove_html=True, normalize_unicode="NFKC"), "unicode")
def test_words_are_those_of_the_cleaned_text_and_lie_apart_and_in_order(
    text: str, cleaning: Cleaning, splitter: str
) -> None:
    words, spans = cleaning.words(text, splitter)
    assert len(words) == len(spans)
    place = 0
    for start, end in spans:
        assert place <= start < end <= len(text)
        place = end
    cleaned = cleaning.text(text, splitter)
    assert "".join("".join(words).split()) == "".join(cleaned.split())
    assert len(words) <= len(split_words(cleaned, splitter))  # what stands for the same characters is one word


@given(TEXTS, st.sampled_from([*WORD_SPLITTERS]))
def test_without_cleaning_words_are_the_splitters(text: str, splitter: str) -> None:
    spans = split_words(text, splitter)
    assert NOTHING.words(text, splitter) == ([text[a:b] for a, b in spans], spans)


def test_offsets_point_into_the_text_with_its_markup() -> None:
    text = "<p>Visit&nbsp;<b>Ber</b>lin, caf&eacute; ½&#8203;!</p>"
    cleaning = Cleaning(
        remove_html=True, normalize_unicode="NFKC", remove_control_characters=True, lowercase=True,
    )  # fmt: skip
    words, spans = cleaning.words(text, "unicode")
    assert words == ["visit", "berlin", ",", "café", "1⁄2", "!"]
    assert [text[a:b] for a, b in spans] == ["Visit", "Ber</b>lin", ",", "caf&eacute;", "½", "!"]


@given(CLEANINGS)
def test_a_cleaning_comes_back_from_plain_values(cleaning: Cleaning) -> None:
    assert Cleaning.from_dict(cleaning.to_dict()) == cleaning


def test_nothing_is_no_value_at_all() -> None:
    assert NOTHING.to_dict() == {}
    assert Cleaning.from_dict(None) == Cleaning.from_dict({}) == NOTHING


@pytest.mark.parametrize(
    "values", [{"lower": True}, {"lowercase": "yes"}, {"replace_urls": 3}, {"remove_stop_words": "a"}]
)
def test_values_that_are_no_cleaning_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Cleaning.from_dict(values)


@given(st.lists(TEXTS), CLEANINGS)
def test_a_list_of_words_keeps_its_words_whatever_is_done_to_them(words: list[str], cleaning: Cleaning) -> None:
    of_words = cleaning.of_words()
    for step in ("remove_html", "remove_stop_words", "remove_punctuation", "normalize_white_space"):
        assert not getattr(of_words, step)
    assert of_words.replace_urls != ""
    assert of_words.of_words() == of_words
