"""What the command line reads and writes as text: lines in, lines of JSON out."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from nlp_mtl.errors import DataError
from nlp_mtl.inference.texts import as_json, groups, pair_size

TextOrPair = tuple[str, str | None]
"""A text, and the second one of a pair."""

LINES_AT_ONCE = 256
"""Answered together: fewer than a stream would, as somebody may be waiting for the first."""


def lines() -> Iterator[str]:
    """The lines of standard input."""
    # Also with a byte-order mark, as Windows writes it.
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # type: ignore[union-attr]
    return readable((line.rstrip("\r\n") for line in sys.stdin), "line")


def readable(texts: Iterable[str], called: str) -> Iterator[str]:
    """Texts in UTF-8; what is none in them, told once, becomes the replacement character.

    Args:
        texts: whose bytes that are no UTF-8 are surrogates, as Python reads arguments.
        called: what a text is, for the message.
    """
    told = False
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:  # a bad text does not stop the others
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if not told:
                print(
                    f"nlp-mtl: {called} {number} is not text in UTF-8; what cannot be read becomes \ufffd",
                    file=sys.stderr,
                )
                told = True
        yield text


def lines_given(are_json: bool) -> Iterator[TextOrPair]:
    """The texts of standard input, a line each."""
    return texts_in_json(lines()) if are_json else ((line, None) for line in lines())


def texts_given(texts: Sequence[str], text_pair: Sequence[str] | None) -> Iterator[TextOrPair]:
    """Those of the command itself. ``text_pair``: as many, or none."""
    seconds = [None] * len(texts) if text_pair is None else readable(text_pair, "--text-pair")
    return zip(readable(texts, "text"), seconds, strict=True)


def texts_in_json(json_lines: Iterable[str]) -> Iterator[TextOrPair]:
    """The texts of lines that are JSON objects.

    Raises:
        DataError: a line is not one with ``text``, or some lines have a ``text_pair`` and some do not.
    """
    are_pairs: bool | None = None
    for number, line in enumerate(json_lines, start=1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of standard input is not JSON: {line!r:.60}") from error
        text, pair = (found.get(key) for key in ("text", "text_pair")) if isinstance(found, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise DataError(
                f"line {number} of standard input should be an object with a `text` and, for pairs, a `text_pair`, "
                f"which are strings; found {line!r:.60}"
            )
        if are_pairs not in (None, pair is not None):
            raise DataError(
                f"some lines of standard input are pairs and some are not; line {number} is the first other"
            )
        are_pairs = pair is not None
        yield text, pair


def as_json_line(value: Any) -> str:
    """A line of JSON for standard output."""
    return as_json(value, sys.stdout.encoding or "utf-8")


def comma_separated(given: Sequence[str] | None) -> list[str] | None:
    """The parts of an option's values, which may hold several each; None: it was not given."""
    return None if given is None else [part.strip() for one in given for part in one.split(",") if part.strip()]


def answered(
    nlp: Callable[..., Any], given: Iterator[TextOrPair], tasks: Sequence[str] | None, all_scores: bool = False
) -> Iterator[list[str]]:
    """Lines of JSON with texts and their answers, some hundreds at a time."""
    for group in groups(given, pair_size, LINES_AT_ONCE):
        firsts = [text for text, _ in group]
        seconds = [second for _, second in group if second is not None] or None
        answers = nlp(firsts, text_pair=seconds, tasks=tasks, all_scores=all_scores)
        yield [
            as_json_line({"text": text, **({} if second is None else {"text_pair": second}), "predictions": answer})
            for (text, second), answer in zip(group, answers, strict=True)
        ]
