"""The steps of cleaning, each against what its name says."""

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.cleaning.steps import stop_words_of
from nlp_mtl.errors import MissingExtraError

ODD = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("aeİΣσ \t\n\u0301\u0308\u0323\u1100\u1161\u11a8\u09c7\u09be\u200d\ufb01½ﾊﾞﾡￂ\ufdfaÃ¶Â"),
    )
)


@given(ODD, st.sampled_from(["NFC", "NFKC", "NFD", "NFKD"]))
@example("e\u0301 o\u0323\u0308 \u1100\u1161\u11a8", "NFC")
@example("ﾊﾞ ½ ﬁ \ufdfa", "NFKC")
def test_normalisation_is_unicodes(text: str, form: str) -> None:
    assert Cleaning(normalize_unicode=form).text(text) == unicodedata.normalize(form, text)  # type: ignore[arg-type]


def test_half_width_hangul_composes_without_the_characters_around_it() -> None:
    words, spans = Cleaning(normalize_unicode="NFKC").words("漢字ﾡￂ漢ﾤￂ字", "unicode")
    assert words == ["漢", "字", "가", "漢", "나", "字"]
    assert spans == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 7), (7, 8)]


@given(ODD)
@example("ΟΔΟΣ İstanbul ΣΑΣ")
def test_lower_case_is_pythons(text: str) -> None:
    assert Cleaning(lowercase=True).text(text) == text.lower()


@given(ODD)
@example(" a\n\nb\u3000c\x1c")
def test_white_space_is_single_spaces_between_words(text: str) -> None:
    assert Cleaning(normalize_white_space=True).text(text) == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u200bb\ufeffc\u00ad\x00d", "abcd"),
        ("\u202eabc\u202c \u200eالعربية", "abc العربية"),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻"),  # joiners mean something
        ("a\tb\nc\x0bd\x1ce\x85f", "a\tb\nc\x0bd\x1ce\x85f"),  # white space
    ],
)
def test_control_characters_go_and_joiners_and_white_space_stay(text: str, expected: str) -> None:
    assert Cleaning(remove_control_characters=True).text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("See https://x.org/a?b=1, www.example.com. End", "See URL, URL. End"),
        ("(http://x.org/)", "(URL)"),
        ("no url here: http", "no url here: http"),
        ("HTTPS://X.ORG/A", "URL"),
        ("请看http://t.cn/abc谢谢张三先生。", "请看URL谢谢张三先生。"),
        ("詳細はhttps://x.jp/aをご覧ください", "詳細はURLをご覧ください"),
    ],
)
def test_web_addresses_are_replaced_without_the_signs_behind_them(text: str, expected: str) -> None:
    assert Cleaning(replace_urls="URL").text(text) == expected
    assert Cleaning(replace_urls="").text(text) == expected.replace("URL", "")


def test_user_names_are_replaced_and_mail_addresses_are_not() -> None:
    text = "@anna met .@bob_2 (@c) at a@b.org and 5@3"
    assert Cleaning(replace_usernames="@user").text(text) == "@user met .@bob_2 (@user) at a@b.org and 5@3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@bob你好世界", "@user你好世界"),
        ("谢谢@bob，@anna さん", "谢谢@user，@user さん"),
        ("你好 @张三 再见", "你好 @user 再见"),  # a name that is Chinese ends at a space
        ("你好a@b.cn", "你好a@b.cn"),
    ],
)
def test_user_names_end_where_chinese_or_japanese_begins(text: str, expected: str) -> None:
    assert Cleaning(replace_usernames="@user").text(text) == expected


def test_punctuation_goes_but_inside_words() -> None:
    cleaning = Cleaning(remove_punctuation=True, normalize_white_space=True)
    assert (
        cleaning.text("“Don't”, he said: state-of-the-art -- 3.5% (no?)...") == "Don't he said state-of-the-art 3.5 no"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("great!!!Thanks", "great Thanks"),
        ("well...maybe", "well maybe"),
        ("He said:(yes)", "He said yes"),
        ('the end."Then', "the end Then"),
        ("don't-know 3.5", "don't-know 3.5"),
    ],
)
def test_words_that_only_punctuation_parts_stay_apart(text: str, expected: str) -> None:
    assert Cleaning(remove_punctuation=True).text(text) == expected


@given(st.text("aé3.!-( $"))
def test_no_words_are_joined_where_punctuation_goes(text: str) -> None:
    def words(text: str) -> list[str]:
        return "".join(one if one.isalnum() else " " for one in text).split()

    assert words(Cleaning(remove_punctuation=True).text(text)) == words(text)


def test_stop_words_are_whole_words_of_any_case() -> None:
    cleaning = Cleaning(remove_stop_words=("the", "Is"), normalize_white_space=True)
    assert cleaning.text("The theme IS the thesis.") == "theme thesis."


def test_steps_come_in_their_order() -> None:
    cleaning = Cleaning(remove_html=True, lowercase=True, replace_urls="URL", remove_stop_words=("AND",))
    assert cleaning.text("<P>A &amp; B and http://x.org</P>") == " a & b  url "


def test_html_that_was_written_as_text_is_removed_where_that_is_wanted() -> None:
    text = "&lt;b&gt;Cubs&lt;/b&gt; <i>x</i>"
    assert Cleaning(remove_html=True).text(text) == "<b>Cubs</b> x"
    assert Cleaning(remove_html="escaped").text(text) == "Cubs x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("schÃ¶n und schön", "schön und schön"), ("voilÃ\xa0 le travail", "voilà le travail"), ("fine", "fine")],
)
def test_a_wrong_encoding_is_mended(text: str, expected: str) -> None:
    pytest.importorskip("ftfy")
    cleaning = Cleaning(fix_encoding=True)
    assert cleaning.text(text) == expected
    words, spans = cleaning.words(text, "whitespace")
    assert words == expected.split()
    assert [text[a:b] for a, b in spans] == text.split(" ")


@given(ODD)
def test_mending_encodings_is_ftfys_whatever_the_text(text: str) -> None:
    ftfy = pytest.importorskip("ftfy")
    assert Cleaning(fix_encoding=True).text(text) == ftfy.fix_encoding(text)


def test_stop_words_of_a_language_are_those_of_the_library() -> None:
    library = pytest.importorskip("stopwordsiso")
    assert set(stop_words_of("de")) == set(library.stopwords("de"))
    with pytest.raises(ValueError, match="there are no stop words of `xx`; there are those of"):
        stop_words_of("xx")


@pytest.mark.parametrize("package", ["ftfy", "stopwordsiso"])
def test_without_a_package_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is needed .*nlp_mtl\[cleaning\]"):
        Cleaning(fix_encoding=True).text("a") if package == "ftfy" else stop_words_of("en")
