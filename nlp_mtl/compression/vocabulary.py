"""The vocabulary of a model cut down to what some words need, which become the same pieces and get the same answers."""

import json
import logging
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from nlp_mtl.compression.pieces import State, check_kind, needed, smaller, vocabulary
from nlp_mtl.compression.rebuilding import axes, changed, chosen, rebuilt
from nlp_mtl.data.tokenization import encode_words, unknown_id
from nlp_mtl.errors import ModelError
from nlp_mtl.models.encoder import load_tokenizer
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.packing import position_offset
from nlp_mtl.storage import save_tokenizer

logger = logging.getLogger(__name__)

_AT_ONCE = 10_000
"""Words that are tokenised together."""
_NO_WORD = re.compile(r"\[unused\d+\]|<unused\d+>")
"""Places that families left free, BERT among its first ones: no text becomes them."""
_KEPT_FILES = ("tokenizer.json", "tokenizer_config.json")


class Vocabulary(NamedTuple):
    """A smaller vocabulary."""

    tokenizer: PreTrainedTokenizerBase
    ids: dict[int, int]
    """``{old id: new id}``, in the same order."""


def pieces_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """The ids that each word becomes, whatever stands beside it."""
    found = []
    for start in range(0, len(words), _AT_ONCE):
        found += encode_words(tokenizer, [[word] for word in words[start : start + _AT_ONCE]])[0]
    return found


def smaller_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    words: Collection[str],
    *,
    keep_characters: bool,
    kept_ids: Iterable[int] = (),
    size: int = 0,
) -> Vocabulary:
    """The smallest vocabulary with which some words become the same pieces.

    Args:
        tokenizer: as :func:`nlp_mtl.models.encoder.load_tokenizer` gives it.
        words: each once.
        keep_characters: keep all pieces of one character as well.
        kept_ids: keep these as well.
        size: keep at least so many pieces, the first ones besides all that is needed; free places come last.

    Raises:
        ModelError: the tokenizer is of a kind for which that cannot be promised.
    """
    state: State = json.loads(tokenizer.backend_tokenizer.to_str())
    check_kind(state)
    words = sorted(words)
    old = pieces_of(tokenizer, words)
    names = {place: piece for piece, place in vocabulary(state).items()}
    unknown_token = unknown_id(tokenizer)
    used = {names[one] for one in {*kept_ids, *(one for ids in old for one in ids)} if one in names}
    unknown = _parts(tokenizer, (word for word, ids in zip(words, old, strict=True) if unknown_token in ids))
    kept = needed(state, used, unknown, characters=keep_characters)
    if size > len(kept):
        more = [piece for _, piece in sorted(names.items()) if piece not in kept]
        more.sort(key=lambda piece: bool(_NO_WORD.fullmatch(piece)))  # the others stay in their order
        kept |= needed(state, used | {*more[: size - len(kept)]}, unknown, characters=keep_characters)
    if kept <= {*tokenizer.all_special_tokens}:
        raise ModelError(
            f"vocabulary: of {len(words):,} words none is known to the tokenizer, so nothing would be left"
        )
    made, new = smaller(state, kept)
    found = _loaded(tokenizer, made)
    other = sum(ids != [new[one] for one in before]
                for ids, before in zip(pieces_of(found, words), old, strict=True))  # fmt: skip
    if other or len(found) != len(new):
        raise ModelError(
            f"vocabulary: {other:,} of {len(words):,} words would be cut otherwise by a smaller vocabulary of this "
            f"tokenizer ({type(tokenizer).__name__}), so it is left as it is"
        )
    return Vocabulary(found, new)


def _parts(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> list[str]:
    """What a tokenizer's model cuts, each by itself."""
    backend: Any = tokenizer.backend_tokenizer
    normal = (word if backend.normalizer is None else backend.normalizer.normalize_str(word) for word in words)
    if backend.pre_tokenizer is None:
        return [*normal]
    return [part for word in normal for part, _ in backend.pre_tokenizer.pre_tokenize_str(word)]


def _loaded(tokenizer: PreTrainedTokenizerBase, state: State) -> PreTrainedTokenizerBase:
    """The tokenizer with another state, as one that was saved with a model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(tokenizer, folder)
        for file in folder.iterdir():  # older kinds of files hold the old vocabulary
            if file.name not in _KEPT_FILES:
                file.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config.pop("added_tokens_decoder", None)  # by their old ids
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        found = load_tokenizer(name)
    found.name_or_path = tokenizer.name_or_path
    return found


def ids_to_keep(model: MultiTaskModel) -> set[int]:
    """The ids that a model's encoder counts on: special ones, and those that positions start behind."""
    found = {*range(position_offset(model.encoder))}
    for _, value in _token_ids(model):
        found |= {*value} if isinstance(value, list) else {value}
    return {one for one in found if one < model.config.encoder_config.vocab_size}


def keep_vocabulary(model: MultiTaskModel, ids: Mapping[int, int]) -> MultiTaskModel:
    """A model with the embeddings of some tokens.

    Args:
        ids: ``{old id: new id}``, in the same order, as many as there will be.

    Raises:
        ModelError: the family's embeddings cannot be cut.
    """
    config = model.config.encoder_config
    found = axes(model, "vocab_size")
    if [(axis.place, axis.blocks) for axis in found.values()] != [(0, 1)]:
        raise ModelError(f"vocabulary: the embeddings of the family `{config.model_type}` are not in one table")
    if any(ids.get(one) != one for one in range(position_offset(model.encoder))):
        raise ModelError("vocabulary: positions are counted from the padding token's id on, which would change")
    kept = torch.tensor([*ids])
    weights = model.state_dict()
    weights |= {name: chosen(weights[name], axis, kept) for name, axis in found.items()}
    made = changed(model.config, vocab_size=len(ids))
    for key, value in _token_ids(model):
        renumbered = [ids[one] for one in value if one in ids] if isinstance(value, list) else ids.get(value)
        setattr(made.encoder_config, key, renumbered)
    return rebuilt(made, weights)


def _token_ids(model: MultiTaskModel) -> list[tuple[str, Any]]:
    """What the encoder's configuration says of special tokens."""
    values = vars(model.config.encoder_config).items()
    return [(key, value) for key, value in values if key.endswith("token_id") and isinstance(value, int | list)]


def differences(old: PreTrainedTokenizerBase, new: Vocabulary, counts: Mapping[str, int]) -> dict[str, int]:
    """How a smaller vocabulary cuts words.

    Args:
        counts: ``{word: how often it occurs}``

    Returns:
        ``words``, all of them; ``otherwise``, those that it cuts into other pieces; ``unknown``, those of them that
        hold an unknown part now and did not before.
    """
    words = [*counts]
    found = {"words": sum(counts.values()), "otherwise": 0, "unknown": 0}
    unknown = unknown_id(old), unknown_id(new.tokenizer)
    for word, before, now in zip(words, pieces_of(old, words), pieces_of(new.tokenizer, words), strict=True):
        if now != [new.ids.get(one) for one in before]:
            found["otherwise"] += counts[word]
            found["unknown"] += counts[word] * (unknown[1] in now and unknown[0] not in before)
    return found
