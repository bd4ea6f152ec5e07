"""What the command line reads and writes as text: lines in, lines of JSON out."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def lines() -> Iterator[str]:
    """The lines of standard input; what is not UTF-8 in them is told once, and becomes the replacement character."""
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    told = False
    for number, line in enumerate(sys.stdin, start=1):
        text = line.rstrip("\r\n")
        try:
            text.encode()
        except UnicodeEncodeError:  # a bad line does not stop the others
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if not told:
                print(
                    f"nlp-mtl: line {number} is not text in UTF-8; what cannot be read becomes \ufffd", file=sys.stderr
                )
                told = True
        yield text


def as_json_line(value: Any) -> str:
    """A line of JSON; what standard output cannot hold (emoji in ASCII, lone surrogates anywhere) is escaped."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


def comma_separated(given: Sequence[str] | None) -> list[str] | None:
    """The parts of an option's values, which may hold several each; None: it was not given."""
    return None if given is None else [part.strip() for one in given for part in one.split(",") if part.strip()]


def chunks(items: Iterator[str], size: int) -> Iterator[list[str]]:
    """Lists of ``size`` items; the last may be shorter."""
    chunk: list[str] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
