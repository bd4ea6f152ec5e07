"""Word splitters: where the words of a text begin and end, in characters of that text.

Token tasks are learned on words and answered on words, so training, evaluation and prediction use
one splitter; its name is kept in the model's configuration. Datasets that come as words keep theirs.
"""

from itertools import pairwise

import regex

# White space as `str.isspace` has it: `\s` leaves out the four separators of ASCII.
_SPACE = r"\s\x1C-\x1F"
# Characters of Chinese and Japanese: words of their own, also next to other letters, digits and addresses.
SINGLE = r"[\p{Han}\p{Hiragana}\p{Katakana}ーｰ]"
# Other letters, and what stands unseen inside words: joiners (Persian, Indic scripts) and the soft hyphen.
_LETTER = rf"[[\p{{L}}\p{{M}}\u00AD\u200C\u200D]--{SINGLE}]"
_WORD = rf"(?:{_LETTER}|[[\p{{N}}_]--{SINGLE}])+"
_IN_ADDRESS = rf"[[^{_SPACE}<>\"]--{SINGLE}]"
WEB_ADDRESS = rf"(?:https?://|www\.){_IN_ADDRESS}*[{_IN_ADDRESS}--\p{{P}}]/?"
"""Without the full stop after it. A pattern of regex in its version 1, as the one above."""

# One alternative a line, tried in order at each position of the text. What may start anywhere inside a long
# run has a bounded or possessive length: the time stays proportional to the text, whatever the text.
_UNICODE = rf"""
    {WEB_ADDRESS}
  | [[\w.+-]--{SINGLE}]{{1,64}}+@[\w-]+(?:\.[\w-]+)+           # e-mail address
  | \p{{Nd}}+(?:[.,:/-]\p{{Nd}}+)*{_LETTER}*                   # 3.5  10:30  1,000  5km
  | {SINGLE}\p{{M}}*                                           # scripts written without spaces: a character a word
  | {_WORD}(?:[-'’·]{_WORD})*                                  # words, with inner hyphens, apostrophes, middle dots
  | ([\p{{P}}\p{{Sm}}\p{{Sc}}])\1+ | [!?]+                     # runs of a sign: ... -- === $$$ !!! ?!
  | (?![{_SPACE}])\X                                           # one character as people see it (emoji, symbol)
"""
_FLAGS = regex.VERBOSE | regex.VERSION1
_UNICODE_WORD = regex.compile(_UNICODE, _FLAGS)

# The conventions of the English treebanks of Universal Dependencies.
_ENGLISH_WORD = regex.compile(
    rf"""
    (?:\p{{L}}\.){{2,}}(?![\w.+-]{{0,64}}+@)                 # U.S.  e.g.  p.m.  (but j.d.smith@example.org)
  | \b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|Corp|Gov|Gen|Lt|Rev|vs|etc)\.
  | (?<![^{_SPACE}])['’](?i:s|m|d|re|ve|ll)(?![^{_SPACE}]) # the ending of a contraction, in text that comes tokenised
  | [:;]-?[)(DPp](?!\w)                                  # :)  ;-)
  |"""
    + _UNICODE,
    _FLAGS,
)
_ENGLISH_SUFFIX = regex.compile(
    r"(?i)(?<=\p{L})(?:n['’]t|['’](?:s|m|d|re|ve|ll))$|(?<=^can)not$|(?<=^(?:gon|wan))na$|(?<=^got)ta$"
)
_ADDRESS = regex.compile(r"https?://|www\.|.*@", regex.DOTALL)
_HYPHEN = regex.compile(r"(?<=\p{L}|\.)-(?=\p{L})")
# Parts that do not stand alone keep their hyphen: e-mail, co-worker, non-stop.
_PREFIXES = frozenset([
    "anti", "bi", "co", "de", "e", "ex", "inter", "intra", "micro", "mid", "mini",
    "multi", "non", "post", "pre", "pro", "re", "semi", "sub", "un", "x",
])  # fmt: skip


def _english_parts(word: str, start: int) -> list[tuple[int, int]]:
    """The pieces of one English word: hyphenated compounds first, then the endings of contractions."""
    if _ADDRESS.match(word):
        return [(start, start + len(word))]
    parts, begin = [], 0
    for hyphen in _HYPHEN.finditer(word):
        if word[begin : hyphen.start()].lower() in _PREFIXES:
            continue
        parts += [(begin, hyphen.start()), (hyphen.start(), hyphen.end())]
        begin = hyphen.end()
    parts.append((begin, len(word)))
    spans = []
    for left, right in parts:
        cuts = [right]
        while ending := _ENGLISH_SUFFIX.search(word[left : cuts[-1]]):  # I'd've: two of them
            cuts.append(left + ending.start())
        edges = [left, *cuts[::-1]]
        spans += [(a + start, b + start) for a, b in pairwise(edges)]
    return spans


def _whitespace(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in regex.finditer(rf"[^{_SPACE}]+", text)]


def _unicode(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _UNICODE_WORD.finditer(text) if not match.group().isspace()]


def _english(text: str) -> list[tuple[int, int]]:
    return [
        span
        for match in _ENGLISH_WORD.finditer(text)
        if not match.group().isspace()
        for span in _english_parts(match.group(), match.start())
    ]


WORD_SPLITTERS = {"unicode": _unicode, "english": _english, "whitespace": _whitespace}


def split_words(text: str, word_splitter: str = "unicode") -> list[tuple[int, int]]:
    """Where the words of ``text`` lie: ``(start, end)`` pairs in characters, in order, none empty.

    Every character that is not white space is in exactly one word. ``unicode`` splits punctuation from
    words in any script and keeps a Chinese or Japanese character a word of its own; ``english`` also
    follows the English treebanks of Universal Dependencies ("do" "n't", "well" "-" "known", "U.S.");
    ``whitespace`` splits at white space only, for text that comes tokenised.
    """
    return WORD_SPLITTERS[word_splitter](text)
