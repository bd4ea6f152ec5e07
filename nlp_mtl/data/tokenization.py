"""Words to sub-words, and long texts to overlapping windows. Used alike in training and prediction."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

_SURROGATE = re.compile("[\ud800-\udfff]")


class Window(NamedTuple):
    """A stretch of a text that the encoder reads at once."""

    start: int
    stop: int
    """Pieces ``[start, stop)`` of the text."""
    first_word: int
    last_word: int
    """Words ``[first_word, last_word)`` whose labels this window answers; each word has one such window."""


def encode_words(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]]
) -> tuple[list[list[int]], list[list[int]]]:
    """The sub-words of texts that come as words.

    Args:
        texts: words of each text.

    Returns:
        ``pieces``, token ids of each text without special tokens; ``starts``, for each word the place of
        its first piece. Every word has a piece: one that the tokenizer drops (a zero-width space, a control
        character) becomes the unknown token, so that it still gets an answer.
    """
    if not texts:
        return [], []
    # Lone surrogates cannot be encoded; the replacement has the same length, so offsets stay.
    clean = [[_SURROGATE.sub("\ufffd", word) for word in words] for words in texts]
    encoded = tokenizer(
        clean,
        is_split_into_words=True,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    unknown = unknown_id(tokenizer)
    all_pieces, all_starts = [], []
    for index, words in enumerate(texts):
        ids, owners = encoded["input_ids"][index], encoded.word_ids(index)
        starts: list[int] = []
        for place, owner in enumerate(owners):
            if owner == len(starts):
                starts.append(place)
            elif owner is None or owner > len(starts):
                break
        if len(starts) < len(words):  # a word became nothing
            ids, starts = _with_unknown(ids, owners, len(words), unknown)
        all_pieces.append(ids)
        all_starts.append(starts)
    return all_pieces, all_starts


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], pairs: Sequence[Sequence[str]]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """The sub-words of pairs of texts, one behind the other.

    Returns:
        ``pieces`` and ``starts`` as :func:`encode_words` gives them, of both texts; for each pair a list of the place
        where the pieces of its second text begin.
    """
    (pieces, starts), (others, other_starts) = encode_words(tokenizer, texts), encode_words(tokenizer, pairs)
    joined = [[*one, *other] for one, other in zip(pieces, others, strict=True)]
    all_starts = [
        [*one, *(len(first) + place for place in other)]
        for one, other, first in zip(starts, other_starts, pieces, strict=True)
    ]
    return joined, all_starts, [[len(first)] for first in pieces]


def _with_unknown(
    ids: list[int], owners: list[int | None], num_words: int, unknown: int
) -> tuple[list[int], list[int]]:
    pieces_of: list[list[int]] = [[] for _ in range(num_words)]
    for piece, owner in zip(ids, owners, strict=True):
        if owner is not None:
            pieces_of[owner].append(piece)
    pieces: list[int] = []
    starts = []
    for word in pieces_of:
        starts.append(len(pieces))
        pieces += word or [unknown]
    return pieces, starts


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The piece of a word that has none: the unknown token, or another special one."""
    for name in ("unk_token_id", "mask_token_id", "pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    word = [["a"]]
    bare = tokenizer(word, is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    full = tokenizer(word, is_split_into_words=True)["input_ids"][0]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError(f"the tokenizer changes a text's tokens when it adds special ones: {bare} in {full}")


class PairFraming(NamedTuple):
    """The special tokens of a pair of texts, and the segment ids (``token_type_ids``) of all its tokens."""

    prefix: list[int]
    middle: list[int]
    """Between both texts."""
    suffix: list[int]
    prefix_types: list[int]
    first_type: int
    middle_types: list[int]
    second_type: int
    suffix_types: list[int]


def pair_framing(tokenizer: PreTrainedTokenizerBase) -> PairFraming:
    """How the tokenizer puts two texts together; all segments are 0 where it does not give any to its model."""
    word = [["a"]]
    encoded = tokenizer(word, word, is_split_into_words=True)
    ids, texts = encoded["input_ids"][0], encoded.sequence_ids(0)
    types = encoded["token_type_ids"][0] if "token_type_ids" in encoded else [0] * len(ids)
    first, second = texts.index(0), texts.index(1)
    behind_first, behind_second = (len(texts) - texts[::-1].index(text) for text in (0, 1))
    return PairFraming(
        ids[:first], ids[behind_first:second], ids[behind_second:],
        types[:first], types[first], types[behind_first:second], types[second], types[behind_second:],
    )  # fmt: skip


def pair_lengths(first: int, second: int, capacity: int) -> tuple[int, int]:
    """Pieces of both texts of a pair that fit: the longer one is cut, down to half, as tokenizers' ``longest_first``.

    Args:
        first, second: the pieces that they have.
        capacity: those that fit (special tokens not counted).
    """
    if first + second <= capacity:
        return first, second
    half = capacity // 2
    if first <= half:
        return first, capacity - first
    if second <= half:
        return capacity - second, second
    return (capacity - half, half) if first > second else (half, capacity - half)


def windows(starts: Sequence[int], num_pieces: int, capacity: int, overlap: int) -> list[Window]:
    """The windows of a text: one where it fits, else overlapping ones that begin and end between words.

    In an overlap each word is answered by the window that shows more text around it. A word of more pieces
    than fit is cut, so that its first pieces are read.

    Args:
        starts: for each word the place of its first piece.
        num_pieces: pieces of the whole text.
        capacity: pieces that fit into a window (special tokens not counted), at least 1.
        overlap: pieces that neighbouring windows share, about; at most half the capacity is used.
    """
    num_words = len(starts)
    if num_pieces <= capacity or num_words <= 1:
        return [Window(0, min(num_pieces, capacity), 0, num_words)]
    ends = [*starts[1:], num_pieces]
    overlap = min(overlap, capacity // 2)
    spans: list[tuple[int, int]] = []  # words [first, last) of each window
    first = 0
    while True:
        last = first + 1
        while last < num_words and ends[last] - starts[first] <= capacity:
            last += 1
        spans.append((first, last))
        if last == num_words:
            break
        following = last
        while following - 1 > first and ends[last - 1] - starts[following - 1] <= overlap:
            following -= 1
        # The next window must reach further than this one.
        while following < last and ends[last] - starts[following] > capacity:
            following += 1
        first = following
    # Words in an overlap are shared out at its middle.
    borders = [0]
    for (_, left_last), (right_first, _) in pairwise(spans):
        borders.append((right_first + left_last + 1) // 2)
    borders.append(num_words)
    return [
        Window(starts[first], min(ends[last - 1], starts[first] + capacity), borders[i], borders[i + 1])
        for i, (first, last) in enumerate(spans)
    ]
