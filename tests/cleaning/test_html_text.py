"""What of a text is markup, and what only looks like it."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_mtl.cleaning.html_text import html_edits

MARKUP = st.lists(
    st.sampled_from([
        "<b>", "</b>", "<p>", "<a href='x>y'>", "<br/>", "<!--", "-->", "<script>", "</script>", "&amp;", "&", "&lt",
        ";", "&#39;", "<", ">", '"', "'", "=", "a", " ", "\n", "é", "<unk>", "<!doctype html>",
    ])
).map("".join)  # fmt: skip


def cleaned(text: str) -> str:
    """The text with what is told to be replaced replaced; edits are ascending and inside it."""
    parts, place = [], 0
    for start, end, replacement in html_edits(text):
        assert place <= start < end <= len(text)
        parts += [text[place:start], replacement]
        place = end
    return "".join(parts) + text[place:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Hello <b>Wor</b>ld &amp; co</p>", " Hello World & co "),
        ("one<br>two<br/>three<td class=x>four", "one two three four"),
        ("<a href='x>y' title=\"a < b\">link</a>", "link"),
        ("&eacute;t&#233; &#xE9; &copy &nbsp;|", "été é © \N{NO-BREAK SPACE}|"),
        ("<script>var a = '<b>';</script>after<STYLE>p{}</style >", " after "),
        ("x<!-- c > d -->y", "xy"),
        ("<!DOCTYPE html><html>a</html>", "  a "),
        ("<my-element>a</my-element>", " a "),
        ("&lt;b&gt;", "<b>"),
    ],
)
def test_markup_is_replaced_by_what_a_browser_shows(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d", "x<y and more", "I <3 you", "<unk> token", "AT&T Q&A R&D", "&foo; &;&#; &#xg;", "&notit;",
        "<b with no end", "<!-- no end", "<?php x ?>", "</3>", "<a <b", "", "plain",
    ],
)  # fmt: skip
def test_what_only_looks_like_markup_stays(text: str) -> None:
    assert cleaned(text) == text


def test_a_script_without_an_end_hides_nothing() -> None:
    assert cleaned("<script>alert(1) and more <b>text</b>") == " alert(1) and more text"


@given(st.text())
def test_an_escaped_text_comes_back(text: str) -> None:
    assert cleaned(html.escape(text)) == text


@given(st.lists(st.text(st.characters(exclude_characters="<&", exclude_categories=["Cs"]))), st.data())
def test_inline_tags_leave_no_trace(parts: list[str], data: st.DataObject) -> None:
    tags = data.draw(
        st.lists(st.sampled_from(["<b>", "</i>", '<span style="x">', "<wbr>", "<SUB >"]), min_size=len(parts))
    )
    assert cleaned("".join(part + tag for part, tag in zip(parts, tags, strict=False))) == "".join(parts)


@given(MARKUP)
def test_whatever_stands_in_a_text_edits_are_in_order_and_nothing_is_invented(text: str) -> None:
    found = cleaned(text)
    assert len(found) <= len(text)
    assert set(found) <= set(text) | set(html.unescape(text)) | {" "}


@pytest.mark.parametrize(
    "unit", ["<!--", '<a b="', "<a b='\"", "&#;", "<script>", "<a ", "<a =", '<a " =', "&aaaa", "<style></style"]
)
def test_the_time_is_proportional_to_the_text(unit: str) -> None:
    """That it ends: a quadratic search through these would take hours."""
    text = unit * (400_000 // len(unit))
    assert len(cleaned(text)) <= len(text)
