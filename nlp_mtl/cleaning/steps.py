"""The steps of cleaning. Each tells what it would replace in a text, and where, so that offsets can be led back."""

import unicodedata
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import regex

from nlp_mtl.cleaning.html_text import Edit
from nlp_mtl.cleaning.mended import difference, mended_edits
from nlp_mtl.errors import MissingExtraError
from nlp_mtl.words import SINGLE, WEB_ADDRESS

# A stretch that normalisation treats for itself: nothing composes across a plain space.
_STRETCH = regex.compile(r"[^ \t\r\n]+")
_CHARACTER = regex.compile(r"\X", regex.VERSION1)  # as people see them
# Control characters that are no white space; soft hyphens, zero-width spaces, word joiners and byte-order marks; marks
# of direction. Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji need them.
_CONTROL = regex.compile(
    r"[\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F\u00AD\u061C\u180E\u200B\u200E\u200F\u202A-\u202E\u2060-\u2069\uFEFF"
    r"\uFFF9-\uFFFB]+"
)
_URL = regex.compile(WEB_ADDRESS, regex.VERSION1 | regex.IGNORECASE)
# Before Chinese and Japanese, which need no space, a name ends; one that is written in these ends at a space.
_IN_NAME = rf"[\w--{SINGLE}]"
_USERNAME = regex.compile(
    rf"(?<![{_IN_NAME}@.+-])@(?:{_IN_NAME}{{1,50}}(?![{_IN_NAME}@])|{SINGLE}\w{{0,49}}(?![\w@]))", regex.VERSION1
)
# A sign inside a word stays: don't, state-of-the-art, 3.5. Several are none of a word's, but part two: well...maybe.
_IN_WORD = r"[\p{L}\p{M}\p{N}]"
_PUNCTUATION = regex.compile(
    rf"(?P<apart>(?<={_IN_WORD})\p{{P}}{{2,}}+(?={_IN_WORD}))|(?<!{_IN_WORD})\p{{P}}+|\p{{P}}+(?!{_IN_WORD})"
)
_WHITE_SPACE = regex.compile(r"[\s\x1C-\x1F]+")


def encoding_edits(text: str) -> Iterator[Edit]:
    """Text that was read in a wrong encoding (``schÃ¶n``), as ftfy finds it; needs the extra ``cleaning``.

    Raises:
        MissingExtraError: ftfy is not installed.
    """
    fixed = _ftfy().fix_encoding(text)
    if fixed != text:
        yield from mended_edits(text, fixed)


def unicode_edits(text: str, form: str) -> Iterator[Edit]:
    """Characters, as people see them, that a normalisation form of Unicode (UAX #15) writes in another way."""
    if unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
        return
    for stretch in _STRETCH.finditer(text):
        whole = unicodedata.normalize(form, stretch.group())  # type: ignore[arg-type]
        if whole == stretch.group():
            continue
        pieces = _normalized(stretch.group(), form)
        if "".join(piece for _, piece in pieces) != whole:
            yield from difference(stretch.start(), stretch.group(), whole)
            continue
        place = stretch.start()
        for old, new in pieces:
            if old != new:
                yield place, place + len(old), new
            place += len(old)


def _normalized(text: str, form: str) -> list[tuple[str, str]]:
    """The characters of a text, as they are and normalised."""
    pieces: list[tuple[str, str]] = []
    for found in _CHARACTER.finditer(text):
        old, new = found.group(), unicodedata.normalize(form, found.group())  # type: ignore[arg-type]
        if pieces:  # half-width Hangul: letters that are characters of their own until they are normalised
            together = pieces[-1][0] + old
            composed = unicodedata.normalize(form, together)  # type: ignore[arg-type]
            if composed != pieces[-1][1] + new:
                pieces[-1] = together, composed
                continue
        pieces.append((old, new))
    return pieces


def control_edits(text: str) -> Iterator[Edit]:
    """Characters that are not seen and mean nothing to readers."""
    return ((*found.span(), "") for found in _CONTROL.finditer(text))


def url_edits(text: str, replacement: str) -> Iterator[Edit]:
    """Web addresses, without the full stop after them."""
    return ((*found.span(), replacement) for found in _URL.finditer(text))


def username_edits(text: str, replacement: str) -> Iterator[Edit]:
    """Names such as ``@somebody``, but not the ends of e-mail addresses."""
    return ((*found.span(), replacement) for found in _USERNAME.finditer(text))


def lowercase_edits(text: str) -> Iterator[Edit]:
    """Capital letters; a sigma that ends a word gets its own form, as ``str.lower`` knows."""
    lowered = text.lower()
    if lowered == text:
        return
    place = 0
    for start, character in enumerate(text):
        length = len(character.lower())
        piece = lowered[place : place + length]
        place += length
        if piece != character:
            yield start, start + 1, piece


def punctuation_edits(text: str) -> Iterator[Edit]:
    """Punctuation that does not stand inside a word; a space takes the place of what stands between two."""
    return ((*found.span(), " " if found["apart"] else "") for found in _PUNCTUATION.finditer(text))


def white_space_edits(text: str) -> Iterator[Edit]:
    """White space that is no single plain space, or stands at an end."""
    for found in _WHITE_SPACE.finditer(text):
        wanted = "" if found.start() == 0 or found.end() == len(text) else " "
        if found.group() != wanted:
            yield (*found.span(), wanted)


def stop_words_of(language: str) -> list[str]:
    """The stop words of a language, by its code (``en``), from stopwordsiso; needs the extra ``cleaning``.

    Raises:
        MissingExtraError: stopwordsiso is not installed.
        ValueError: it has no such language.
    """
    library = _extra("stopwordsiso", "for the stop words of a language")
    if not library.has_lang(language):
        raise ValueError(f"there are no stop words of `{language}`; there are those of {', '.join(library.langs())}")
    return sorted(library.stopwords(language))


def _ftfy() -> Any:
    return _extra("ftfy", "for cleaning.fix_encoding")


def _extra(package: str, what: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(f"{package} is needed {what}: pip install 'nlp_mtl[cleaning]'") from error
