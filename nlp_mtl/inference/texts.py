"""Texts as users give them: one, several or a stream, as running text or as words."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import zip_longest
from typing import Any

from nlp_mtl.cleaning.cleaning import Cleaning, Span

TEXTS_AT_ONCE = 1024
"""Texts that are sorted by length together; with the next, bounds the memory that a stream takes."""

CHARACTERS_AT_ONCE = 1_000_000

_NONE: Any = object()


def listed_texts(texts: Any) -> list[Any]:
    """All of several texts."""
    check_iterable(texts)
    return list(texts)


def check_iterable(texts: Any) -> None:
    """TypeError, if it is not several texts in some order."""
    unordered = isinstance(texts, bytes | bytearray | Mapping | AbstractSet | str)
    if unordered or not isinstance(texts, Iterable):
        raise TypeError(f"expected a text or a list of texts, but found {type(texts).__name__}: {texts!r:.60}")


def find_words(
    text: str | Sequence[str], place: int, word_splitter: str, cleaning: Cleaning
) -> tuple[str, list[Span], list[str]]:
    """A text, where its words lie, and these words, cleaned."""
    if isinstance(text, str):
        words, spans = cleaning.words(text, word_splitter)
        return text, spans, words
    if not isinstance(text, list | tuple) or not all(isinstance(word, str) for word in text):
        raise TypeError(f"text {place} should be a string or a list of words, but it is {text!r:.60}")
    spans, end = [], 0
    for word in text:
        start = end + bool(end and word)  # an empty word takes no place, and no space
        end = start + len(word)
        spans.append((start, end))
    of_words = cleaning.of_words()
    return joined(text), spans, [of_words.text(word) for word in text]


def joined(text: str | Sequence[str]) -> str:
    """A text that may have come as words: what offsets index into."""
    return text if isinstance(text, str) else " ".join(filter(None, text))


def as_json(value: Any, encoding: str = "utf-8") -> str:
    """A line of JSON; what the encoding cannot hold (lone surrogates; emoji in ASCII) is escaped."""
    line = json.dumps(value, ensure_ascii=False, default=str)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    return line


def chunks(texts: Iterable[Any], text_pair: Iterable[Any] | None) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Texts and their second ones, as many as are answered together."""
    firsts: list[Any] = []
    seconds: list[Any] = []
    size = 0
    for first, second in zip_longest(texts, () if text_pair is None else text_pair, fillvalue=_NONE):
        if text_pair is not None and (first is _NONE or second is _NONE):
            raise ValueError("there are more texts than in text_pair, or fewer; each needs one")
        firsts.append(first)
        seconds.append(second)
        size += num_characters(first) + num_characters(second)
        if len(firsts) == TEXTS_AT_ONCE or size >= CHARACTERS_AT_ONCE:
            yield firsts, None if text_pair is None else seconds
            firsts, seconds, size = [], [], 0
    if firsts:
        yield firsts, None if text_pair is None else seconds


def sizes_of(texts: Sequence[Any], text_pair: Sequence[Any] | None) -> list[int]:
    """How large each text is, with its second one."""
    seconds = [0] * len(texts) if text_pair is None else map(num_characters, text_pair)
    return [num_characters(text) + second for text, second in zip(texts, seconds, strict=True)]


def num_characters(text: Any) -> int:
    """How large a text is, or a list of words; 0 of what is neither, which is refused when it is looked at."""
    if isinstance(text, list | tuple):
        return sum(len(word) + 1 for word in text if isinstance(word, str))
    return len(text) if isinstance(text, str) else 0
