"""Texts cleaned before words are found in them; where the words lie is told in the text as it was given."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from typing import Any

from nlp_mtl.cleaning.html_text import Edit, html_edits
from nlp_mtl.cleaning.steps import (
    control_edits,
    encoding_edits,
    lowercase_edits,
    punctuation_edits,
    unicode_edits,
    url_edits,
    username_edits,
    white_space_edits,
)
from nlp_mtl.words import split_words

VERSION = 5
"""Part of cache keys; raised when a step does something else."""

_TEXTS = ("normalize_unicode", "replace_urls", "replace_usernames")
_TYPES: dict[str, Any] = {"remove_html": bool | str, "remove_stop_words": tuple, **dict.fromkeys(_TEXTS, str)}
"""What steps are said with, where it is not true or false."""

Span = tuple[int, int]
"""Start and end, in characters."""


@dataclass(frozen=True)
class Cleaning:
    """What is done to a text, in this order. The same in training and prediction: it is kept with the model."""

    fix_encoding: bool = False
    remove_html: bool | str = False
    """``escaped``: also tags that were written as entities, ``&lt;b&gt;``."""
    normalize_unicode: str | None = None
    """NFC, NFKC, NFD or NFKD."""
    remove_control_characters: bool = False
    replace_urls: str | None = None
    """What stands for them; an empty string removes them."""
    replace_usernames: str | None = None
    remove_stop_words: tuple[str, ...] = ()
    """Compared without regard to case."""
    lowercase: bool = False
    remove_punctuation: bool = False
    normalize_white_space: bool = False

    def to_dict(self) -> dict[str, Any]:
        """What differs from doing nothing, as plain values."""
        plain = {one.name: one.default for one in fields(self)}
        found = {key: value for key, value in asdict(self).items() if value != plain[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Cleaning":
        """The cleaning of what :meth:`to_dict` gave; None: nothing is done.

        Raises:
            TypeError: there is no such step, or it is not said as it should be.
        """
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (values or {}).items()
        }
        for key, value in given.items():
            if not isinstance(value, _TYPES.get(key, bool)):
                raise TypeError(f"{key} is {value!r:.60}")
        return cls(**given)

    def of_words(self) -> "Cleaning":
        """The same for texts that come as lists of words: without the steps that look at more than a word, and leave
        out words that may have labels."""
        return Cleaning(
            fix_encoding=self.fix_encoding,
            normalize_unicode=self.normalize_unicode,
            remove_control_characters=self.remove_control_characters,
            replace_urls=self.replace_urls or None,
            replace_usernames=self.replace_usernames or None,
            lowercase=self.lowercase,
        )

    def text(self, text: str, word_splitter: str = "unicode") -> str:
        """A text, cleaned."""
        stages = [text, *(after for _, after in self._stages(text, word_splitter))]
        return stages[-1]

    def words(self, text: str, word_splitter: str) -> tuple[list[str], list[Span]]:
        """The words of a cleaned text, and where they lie in the text as it is given.

        Words that stand for the same characters (``½`` may become ``1⁄2``, three words) are one.
        """
        cleaned, places = text, None
        for edits, after in self._stages(text, word_splitter):
            places = _places(places or (range(len(text)), range(1, len(text) + 1)), edits)
            cleaned = after
        spans = split_words(cleaned, word_splitter)
        if places is None:
            return [text[start:end] for start, end in spans], spans
        starts, ends = places
        words: list[Span] = []
        given: list[Span] = []
        for start, end in spans:
            first, last = starts[start], ends[end - 1]
            if given and first < given[-1][1]:
                words[-1], given[-1] = (words[-1][0], end), (given[-1][0], last)
            else:
                words.append((start, end))
                given.append((first, last))
        return [cleaned[start:end] for start, end in words], given

    @cached_property
    def _stop_words(self) -> frozenset[str]:
        return frozenset(word.casefold() for word in self.remove_stop_words)

    def _stages(self, text: str, word_splitter: str) -> Iterator[tuple[list[Edit], str]]:
        """What each step replaces in the text that the steps before it left, and the text after it; of steps that
        change something."""
        for step in self._steps(word_splitter):
            edits = list(step(text))
            if edits:
                text = _edited(text, edits)
                yield edits, text

    def _steps(self, word_splitter: str) -> Iterator[Callable[[str], Iterable[Edit]]]:
        if self.fix_encoding:
            yield encoding_edits
        if self.remove_html:
            yield html_edits
        if self.remove_html == "escaped":
            yield html_edits
        if self.normalize_unicode is not None:
            yield partial(unicode_edits, form=self.normalize_unicode)
        if self.remove_control_characters:
            yield control_edits
        if self.replace_urls is not None:
            yield partial(url_edits, replacement=self.replace_urls)
        if self.replace_usernames is not None:
            yield partial(username_edits, replacement=self.replace_usernames)
        if self.remove_stop_words:
            yield partial(self._stop_word_edits, word_splitter=word_splitter)
        if self.lowercase:
            yield lowercase_edits
        if self.remove_punctuation:
            yield punctuation_edits
        if self.normalize_white_space:
            yield white_space_edits

    def _stop_word_edits(self, text: str, word_splitter: str) -> Iterator[Edit]:
        for start, end in split_words(text, word_splitter):
            if text[start:end].casefold() in self._stop_words:
                yield start, end, ""


NOTHING = Cleaning()
"""Texts as they are."""


def _edited(text: str, edits: Iterable[Edit]) -> str:
    parts, place = [], 0
    for start, end, replacement in edits:
        parts += [text[place:start], replacement]
        place = end
    return "".join([*parts, text[place:]])


def _places(places: tuple[Sequence[int], Sequence[int]], edits: Iterable[Edit]) -> tuple[list[int], list[int]]:
    """Where each character begins and ends in the text that was given, after some were replaced: what is new stands
    for all that it replaces."""
    starts: list[int] = []
    ends: list[int] = []
    place = 0
    for start, end, replacement in edits:
        starts += places[0][place:start]
        ends += places[1][place:start]
        starts += [places[0][start]] * len(replacement)
        ends += [places[1][end - 1]] * len(replacement)
        place = end
    return [*starts, *places[0][place:]], [*ends, *places[1][place:]]
