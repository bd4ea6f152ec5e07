"""Cards as text: what is made from a run beside what their owners wrote."""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from nlp_mtl.errors import ModelError

BEGIN, END = "<!-- nlp_mtl: what follows is made from the run -->", "<!-- nlp_mtl: end -->"
"""Around the part that the next push writes anew. All else in a card is its owner's."""

_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_MADE = re.compile(r"<!-- nlp_mtl: metadata (.*?) -->")
"""Metadata as they were made, so that the next push knows what their owner changed."""


def merged(
    old: str | None, header: Mapping[str, Any], text: str, *, where: str, said: Mapping[str, Any] | None = None
) -> str:
    """A whole card: a new one, or an old one whose made part is written anew and whose other text stays.

    Metadata that their owner wrote or changed stay as they are.

    Args:
        old: the card that is there.
        header: metadata.
        text: what stands between the marks.
        where: which card, for messages.
        said: those of the metadata that the owner says now, whatever the card says. They are kept as the owner's own.

    Raises:
        ModelError: the old one has a mark too few or too many, or its header cannot be read.
    """
    plain = json.loads(json.dumps(header))
    said = said or {}
    body = _between_marks(text, _not_said(plain, said))
    if old is None:
        return f"---\n{as_yaml(plain)}---\n\n{body}\n"
    own, rest = _parted(old, where)
    marks = (rest.count(BEGIN), rest.count(END))
    made_before: dict[str, Any] = {}
    if marks == (0, 0):
        rest = f"{rest}\n\n{body}".strip("\n")
    elif marks == (1, 1) and rest.index(BEGIN) < rest.index(END):
        first, last = rest.index(BEGIN), rest.index(END) + len(END)
        made_before = _made_before(rest[first:last])
        rest = rest[:first] + body + rest[last:]
    else:
        raise ModelError(
            f"the card {where} holds {BEGIN!r} {marks[0]} times and {END!r} {marks[1]} times; each should stand there "
            "once, around what a push writes anew: mend the card, or take both out"
        )
    return f"---\n{as_yaml(_merged_header(own, made_before, plain, said))}---\n\n{rest}\n"


def _merged_header(
    own: Mapping[str, Any], made_before: Mapping[str, Any], made: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any]:
    """What is made, and beside it what the owner wrote: what differs from what was made before."""
    stays = {
        key: value for key, value in own.items()
        if key not in ("model-index", "tags", *said) and value is not None and value != made_before.get(key)
    }  # fmt: skip
    before = made_before.get("tags", [])
    tags = [tag for tag in texts(own.get("tags")) if tag not in before]
    found = {**made, **stays, "tags": list(dict.fromkeys([*made.get("tags", []), *tags]))}
    index = found.pop("model-index", None)  # the longest comes last
    return {**found, "model-index": index} if index else found


def _not_said(made: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata that were found, not told by the owner: a later push may change them."""
    tags = [tag for tag in made.get("tags", []) if tag not in said.get("tags", ())]
    return {**{key: value for key, value in made.items() if key not in said}, "tags": tags}


def _parted(card: str, where: str) -> tuple[dict[str, Any], str]:
    """A card's metadata, and its text."""
    card = card.removeprefix("\ufeff")
    match = _HEADER.match(card)
    if match is None:
        return {}, card.strip("\r\n")
    try:
        found = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ModelError(f"the card {where} has a header that cannot be read: {problem}") from error
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"the card {where} has a header that cannot be read: it is not `key: value` lines")
    found = found or {}
    if "language" in found:  # YAML reads Norwegian, a bare no, as false
        given = found["language"]
        found["language"] = ["no" if one is False else one for one in given] if isinstance(given, list) else (
            "no" if given is False else given)  # fmt: skip
    return found, card[match.end() :].strip("\r\n")


def _between_marks(text: str, header: Mapping[str, Any]) -> str:
    text = text.replace(BEGIN, "").replace(END, "")  # the next push finds each once, whatever labels and recipes hold
    kept = json.dumps({key: value for key, value in header.items() if key != "model-index"}).replace(">", "\\u003e")
    return f"{BEGIN}\n{text}\n\n<!-- nlp_mtl: metadata {kept} -->\n{END}"


def _made_before(part: str) -> dict[str, Any]:
    """Metadata that an earlier push made; of a part that its owner took them out of, none."""
    matches = _MADE.findall(part)
    try:
        found = json.loads(matches[-1]) if matches else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def texts(value: Any) -> list[str]:
    """A value of a card's header that may be a text, several or none."""
    return [str(one) for one in (value if isinstance(value, list) else [value]) if one is not None]


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
