"""Which pieces of a tokenizer's vocabulary have to stay, so that some words are cut into the same pieces as before.

From the JSON of the tokenizers library, by kinds of models:

- WordPiece takes the longest piece that fits, from left to right. Pieces that words became stay the longest. A word
  with a part that nothing fits becomes unknown as a whole, and leaves no trace of the pieces that were tried: all that
  occur in it stay.
- BPE joins neighbours by a list of merges, the earliest first. Merges that lead to the pieces stay, in their order, and
  with them what they join; others that would not apply before cannot apply now. What is in a piece was joined without
  regard to what is around it, so going over the piece alone finds its merges.
- Unigram takes the pieces with the highest sum of scores. Fewer pieces leave the best sum the best. What an unknown
  character costs depends on the lowest score of all: its piece stays.
- WordLevel looks words up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from nlp_mtl.errors import ModelError

State = dict[str, Any]
"""What a tokenizer's ``tokenizer.json`` holds."""

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def vocabulary(state: State) -> dict[str, int]:
    """``{piece: id}`` of a tokenizer's model, without added tokens that it does not have itself."""
    found = state["model"]["vocab"]
    if isinstance(found, list):  # of Unigram, with scores
        return {piece: place for place, (piece, _) in enumerate(found)}
    return dict(found)


def check_kind(state: State) -> None:
    """That a tokenizer's vocabulary can be made smaller exactly.

    Raises:
        ModelError: it cannot.
    """
    model = state["model"]
    kind, why = model.get("type"), ""
    if kind not in ("WordPiece", "BPE", "Unigram", "WordLevel"):
        why = f"it is of the kind {kind}"
    elif kind == "BPE" and model.get("dropout"):
        why = "it leaves out merges by chance (dropout)"
    elif kind == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        why = "it marks where in a word a piece stands (continuing_subword_prefix, end_of_word_suffix)"
    if why:
        raise ModelError(f"vocabulary: this tokenizer's cannot be made smaller so that it says the same: {why}")


def needed(state: State, used: Iterable[str], unknown: Iterable[str], *, characters: bool) -> set[str]:
    """The pieces that have to stay.

    Args:
        used: the pieces that the words became.
        unknown: parts, as the tokenizer's pre-tokenizer makes them, of words that hold the unknown token.
        characters: let all pieces of one character stay as well, so that other words of these can still be cut.
    """
    model, pieces = state["model"], vocabulary(state)
    added = {one["content"] for one in state["added_tokens"] if one["content"] in pieces}
    made = {piece for piece in used if piece in pieces} - added
    kept = made | added
    kept |= {piece for piece in pieces if model.get("byte_fallback") and _BYTE.fullmatch(piece)}
    prefix = model.get("continuing_subword_prefix") or ""
    if model["type"] == "WordPiece":
        longest = max(map(len, pieces), default=0)
        most = model.get("max_input_chars_per_word") or 100
        specials = [one["content"] for one in state["added_tokens"]]
        for word in unknown:
            if len(word) > most and not any(one in word for one in specials):
                continue  # it became unknown before any piece was tried
            for start in range(len(word)):
                parts = (word[start:stop] for stop in range(start + 1, min(start + longest, len(word)) + 1))
                kept |= {name for part in parts for name in (part, prefix + part) if name in pieces}
    if model["type"] == "BPE":
        # Without an unknown token, what is not there would vanish.
        characters = characters or model.get("unk_token") is None
        ranks = {(one, other): rank for rank, (one, other) in enumerate(model["merges"])}
        kept |= {part for piece in made for merge in _merges_of(piece, ranks) for part in merge}
        kept |= {character for piece in made for character in piece if character in pieces}
    if model["type"] == "Unigram":
        kept |= {min(model["vocab"], key=lambda one: one[1])[0], model["vocab"][model["unk_id"] or 0][0]}
    elif model.get("unk_token") in pieces:
        kept.add(model["unk_token"])
    if characters:
        kept |= {piece for piece in pieces if len(piece.removeprefix(prefix) or piece) == 1}
    return kept


def _merges_of(piece: str, ranks: Mapping[tuple[str, str], int]) -> Iterator[tuple[str, str, str]]:
    """The merges that make a piece of its characters: what is joined, and what it becomes."""
    parts = [*piece]
    while len(parts) > 1:
        found = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return  # it was looked up as a whole word (ignore_merges), or is an added token
        place = min(found)[1]
        joined = parts[place] + parts[place + 1]
        yield parts[place], parts[place + 1], joined
        parts[place : place + 2] = [joined]


def smaller(state: State, kept: set[str]) -> tuple[State, dict[int, int]]:
    """A tokenizer with these pieces alone, and all added tokens.

    Returns:
        what its ``tokenizer.json`` holds, and ``{old id: new id}`` of all its tokens, in the same order.
    """
    model, pieces = state["model"], vocabulary(state)
    ids = sorted(pieces[piece] for piece in kept)
    # The library numbers added tokens that its model lacks behind those that it has.
    ids += sorted(one["id"] for one in state["added_tokens"] if one["content"] not in pieces)
    new = {old: place for place, old in enumerate(ids)}
    made = {**model}
    if model["type"] == "Unigram":
        made["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
        made["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        made["vocab"] = {piece: new[pieces[piece]] for piece in sorted(kept, key=lambda one: pieces[one])}
    if model["type"] == "BPE":
        made["merges"] = [[one, other] for one, other in model["merges"] if {one, other, one + other} <= kept]
    padding = state.get("padding")
    return {
        **state,
        "model": made,
        "added_tokens": sorted(
            ({**one, "id": new[one["id"]]} for one in state["added_tokens"]), key=lambda one: int(one["id"])
        ),
        "post_processor": _renumbered(state.get("post_processor"), new),
        "padding": padding and {**padding, "pad_id": new[padding["pad_id"]]},
    }, new


def _renumbered(part: Any, new: Mapping[int, int]) -> Any:
    """What stands around texts, with other ids: ``ids`` of templates, ``[token, id]`` of BERT's and RoBERTa's own."""
    if isinstance(part, list):
        return [_renumbered(one, new) for one in part]
    if not isinstance(part, dict):
        return part
    found = {}
    for key, value in part.items():
        if key == "ids":
            found[key] = [new[one] for one in value]
        elif key in ("sep", "cls") and isinstance(value, list):
            found[key] = [value[0], new[value[1]]]
        else:
            found[key] = _renumbered(value, new)
    return found
