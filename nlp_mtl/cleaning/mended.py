"""Where a text differs from the same text with its encoding mended, in pieces as small as can be told."""

from collections.abc import Iterator

import regex

from nlp_mtl.cleaning.html_text import Edit

# ASCII stays what it is, but for spaces and question marks, which may stand for lost bytes, and control characters.
_BETWEEN = regex.compile(r"[^!->@-~]+")
_STRETCH = regex.compile(r"[^ \t\r\n]+")


def mended_edits(text: str, mended: str) -> Iterator[Edit]:
    """What to replace in ``text`` so that ``mended``, which ftfy made of it, is left."""
    if _BETWEEN.split(text) != _BETWEEN.split(mended):
        yield from difference(0, text, mended)
        return
    for one, other in zip(_BETWEEN.finditer(text), _BETWEEN.finditer(mended), strict=True):
        if one.group() != other.group():
            yield from _edits(one.start(), one.group(), other.group())


def difference(start: int, old: str, new: str) -> Iterator[Edit]:
    """The middle in which two texts differ, as one edit.

    Args:
        start: where the old one begins.
    """
    if old == new:
        return
    limit = min(len(old), len(new))
    left = next((place for place in range(limit) if old[place] != new[place]), limit)
    right = next((place for place in range(limit - left) if old[-1 - place] != new[-1 - place]), limit - left)
    first, last = left, len(old) - right
    if first == last:  # something came in: it stands for the character beside it as well
        first, last = (first - 1, last) if first else (first, last + 1)
        yield start + first, start + last, new[max(left - 1, 0) : len(new) - right + (0 if left else 1)]
        return
    yield start + first, start + last, new[left : len(new) - right]


def _edits(start: int, old: str, new: str) -> Iterator[Edit]:
    by_character = _by_character(start, old, new)
    if by_character is not None:
        yield from by_character
        return
    if _STRETCH.split(old) != _STRETCH.split(new):  # a space was itself read wrongly
        yield from difference(start, old, new)
        return
    for one, other in zip(_STRETCH.finditer(old), _STRETCH.findall(new), strict=True):
        by_character = _by_character(start + one.start(), one.group(), other)
        yield from difference(start + one.start(), one.group(), other) if by_character is None else by_character


def _by_character(start: int, old: str, new: str) -> list[Edit] | None:
    """An edit a character, where each stands for itself or was read as one character a byte; None: they do not."""
    for twice in (None, "latin-1", "sloppy-windows-1252"):  # the latter is a codec of ftfy
        edits, place = [], 0
        for character in new:
            end = place + _length(old[place : place + 1], character, twice)
            if old[place:end] != character:
                edits.append((start + place, start + end, character))
            place = end
        if place == len(old):
            return edits
    return None


def _length(first: str, character: str, twice: str | None) -> int:
    """How many characters, the first of which is given, stand for one that was mended.

    Args:
        twice: what it was read as before it was read wrongly again; None: that happened once.
    """
    if first == character or "\x80" <= first <= "\x9f":  # no letter begins with such a byte: it was Windows-1252
        return 1
    if character == "\ufffd":  # bytes were lost: the first one tells how many there were
        return 2 + (first >= "\xe0") + (first >= "\xf0")
    read = character.encode(errors="surrogatepass")
    return len(read if twice is None else read.decode(twice).encode())
