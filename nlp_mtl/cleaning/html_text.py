"""What of an HTML text is markup: tags, comments, scripts and entities, each with its place in the text."""

from collections.abc import Iterator
from html import unescape
from html.entities import html5

import regex

Edit = tuple[int, int, str]
"""``(start, end, replacement)``: characters ``[start, end)`` of a text, at least one, and what stands for them."""

_INLINE = frozenset([
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "ins", "kbd", "label", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong",
    "sub", "sup", "time", "tt", "u", "var", "wbr",
])  # fmt: skip
"""Elements that may stand inside a word: nothing takes the place of their tags."""

_OTHERS = frozenset([
    "address", "applet", "area", "article", "aside", "audio", "base", "basefont", "blink", "blockquote", "body",
    "br", "button", "canvas", "caption", "center", "col", "colgroup", "command", "datalist", "dd", "details",
    "dialog", "dir", "div", "dl", "dt", "embed", "fieldset", "figcaption", "figure", "footer", "form", "frame",
    "frameset", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hgroup", "hr", "html", "iframe", "img",
    "input", "isindex", "keygen", "legend", "li", "link", "main", "map", "marquee", "math", "menu", "menuitem",
    "meta", "meter", "nav", "nobr", "noframes", "noscript", "object", "ol", "optgroup", "option", "output", "p",
    "param", "picture", "plaintext", "pre", "progress", "script", "search", "section", "select", "slot",
    "source", "spacer", "style", "summary", "svg", "table", "tbody", "td", "template", "textarea", "tfoot",
    "th", "thead", "title", "tr", "track", "ul", "video", "xmp",
])  # fmt: skip
"""Elements that stand between words: a space takes the place of their tags."""

# Attributes: quotes count behind `=` only, and what is in them may hold any sign; a `<` outside of them begins anew.
_MARKUP = regex.compile(
    r"""
    <(?P<end>/?)(?P<tag>[a-z][a-z0-9-]*+)(?P<rest>(?:/?\s(?:[^<>=]|=\s*+(?:"[^"]*+"|'[^']*+')|=)*+)?/?)>
  | <!doctype\b[^<>]*+>
  | (?P<comment><!--)
  | &(?P<entity>\#[0-9]{1,7}+|\#x[0-9a-f]{1,6}+|[a-z][a-z0-9]{0,31}+)(?P<closed>;?)
    """,
    regex.VERBOSE | regex.IGNORECASE,
)


def html_edits(text: str) -> Iterator[Edit]:
    """What to replace so that a text is left about as a browser shows it, in one pass whatever the text.

    Tags of elements that HTML knows (and of custom ones, whose names have a hyphen) go, and so do comments, the
    document type, scripts and styles; entities become their characters. What only looks like a tag stays: ``<unk>``,
    ``a < b``, a tag or a comment that never ends. So does an entity without its semicolon where HTML wants one:
    ``Q&A``, ``&foo``. Parsers (the standard library's, selectolax) do not tell where all pieces end.
    """
    place = 0
    is_open = {"-->": True, "script": True, "style": True}  # whether one may still be closed
    while found := _MARKUP.search(text, place):
        start, place = found.span()
        if found["comment"]:
            end = text.find("-->", place) if is_open["-->"] else -1
            is_open["-->"] = end >= 0
            if end >= 0:
                place = end + 3
                yield start, place, ""
        elif found["entity"]:
            character = _character(found["entity"], bool(found["closed"]))
            if character is not None:
                yield start, place, character
        elif found["tag"] is None:
            yield start, place, " "
        elif (replacement := _stands_for_tag(name := found["tag"].lower())) is not None:
            if name in ("script", "style") and not found["end"] and not found["rest"].endswith("/") and is_open[name]:
                closing = regex.compile(rf"</{name}\b[^<>]*+>", regex.IGNORECASE).search(text, place)
                is_open[name] = closing is not None
                place = closing.end() if closing else place
            yield start, place, replacement


def _stands_for_tag(tag: str) -> str | None:
    if tag in _INLINE:
        return ""
    return " " if tag in _OTHERS or "-" in tag else None


def _character(entity: str, is_closed: bool) -> str | None:
    """What an entity stands for; None: itself."""
    if not entity.startswith("#"):
        return html5.get(f"{entity};" if is_closed else entity)  # old names need no semicolon
    return unescape(f"&{entity};") or None
