"""Texts as users give them: one, several or a stream, as running text or as words."""

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import zip_longest
from typing import Any, TypeVar

from nlp_mtl.cleaning.cleaning import Cleaning, Span

TEXTS_AT_ONCE = 1024
"""Texts that are sorted by length together; with the next, bounds the memory that a stream takes."""

CHARACTERS_AT_ONCE = 1_000_000

_NONE: Any = object()

T = TypeVar("T")


def listed_texts(texts: Any) -> list[Any]:
    """All of several texts."""
    check_iterable(texts)
    return list(texts)


def check_iterable(texts: Any) -> None:
    """TypeError, if it is not several texts in some order."""
    unordered = isinstance(texts, bytes | bytearray | Mapping | AbstractSet | str)
    if unordered or not isinstance(texts, Iterable):
        raise TypeError(f"expected a text or a list of texts, but found {type(texts).__name__}: {texts!r:.60}")


def find_words(text: str | Sequence[str], word_splitter: str, cleaning: Cleaning) -> tuple[str, list[Span], list[str]]:
    """A text, where its words lie, and these words, cleaned."""
    if isinstance(text, str):
        words, spans = cleaning.words(text, word_splitter)
        return text, spans, words
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
    """A line of JSON; what the encoding cannot hold (lone surrogates; emoji in ASCII) is escaped.

    NaN and infinities, which JSON does not have, become null; times are written as ISO 8601, bytes in base64.
    """
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        value = _finite(value)
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain)
    return line


def _plain(value: Any) -> Any:
    """What a column may hold beside what JSON has."""
    if isinstance(value, date | time):  # also with both
        return value.isoformat()
    if isinstance(value, timedelta | Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def groups(items: Iterable[T], size_of: Callable[[T], int], count: int) -> Iterator[list[T]]:
    """Items, ``count`` at a time, or fewer that have a million characters.

    What goes wrong where they come from is told behind what came before it.
    """
    held: list[T] = []
    size = 0
    try:
        for item in items:
            held.append(item)
            size += size_of(item)
            if len(held) == count or size >= CHARACTERS_AT_ONCE:
                yield held
                held, size = [], 0
    except Exception:
        if held:
            yield held
        raise
    if held:
        yield held


def chunks(texts: Iterable[Any], text_pair: Iterable[Any] | None) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Texts and their second ones, as many as are answered together."""
    for group in groups(_checked(texts, text_pair), pair_size, TEXTS_AT_ONCE):
        yield [first for first, _ in group], None if text_pair is None else [second for _, second in group]


def _checked(texts: Iterable[Any], text_pair: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    """Texts with their second ones, or with None."""
    if text_pair is None:
        for place, first in enumerate(texts):
            _check_text(first, place)
            yield first, None
        return
    for place, (first, second) in enumerate(zip_longest(texts, text_pair, fillvalue=_NONE)):
        if first is _NONE or second is _NONE:
            raise ValueError("there are more texts than in text_pair, or fewer; each needs one")
        _check_text(first, place)
        _check_text(second, place)
        yield first, second


def _check_text(text: Any, place: int) -> None:
    if isinstance(text, str) or (isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)):
        return
    raise TypeError(f"text {place} should be a string or a list of words, but it is {text!r:.60}")


def pair_size(pair: tuple[Any, Any]) -> int:
    """How large a text is, with its second one."""
    return num_characters(pair[0]) + num_characters(pair[1])


def sizes_of(texts: Sequence[Any], text_pair: Sequence[Any] | None) -> list[int]:
    """How large each text is, with its second one."""
    seconds = [0] * len(texts) if text_pair is None else map(num_characters, text_pair)
    return [num_characters(text) + second for text, second in zip(texts, seconds, strict=True)]


def num_characters(text: Any) -> int:
    """How large a text is, or a list of words; 0 of what is neither, which is refused when it is looked at."""
    if isinstance(text, list | tuple):
        return sum(len(word) + 1 for word in text if isinstance(word, str))
    return len(text) if isinstance(text, str) else 0
