"""What a request asks about: checked against what a request may hold."""

from typing import Any

from starlette.exceptions import HTTPException

from nlp_mtl.inference.texts import num_characters
from nlp_mtl.serving.schemas import PredictRequest

TEXTS_IN_FULL = 10
"""How many of the longest texts a request may hold; with all scores, whose answers are larger by as much, one."""


def given_texts(asked: PredictRequest, max_texts: int, max_characters: int) -> tuple[bool, list[Any], list[Any] | None]:
    """Whether one text is asked about, the texts, and their second ones.

    Raises:
        HTTPException: they are none, or more or longer than may be, or there are not as many second ones.
    """
    is_one = isinstance(asked.texts, str)
    texts = _listed("texts", asked.texts, max_texts)
    text_pair = None
    if asked.text_pair is not None:
        if isinstance(asked.text_pair, str) != is_one:
            raise HTTPException(422, "text_pair: expected the same form as `texts`: one text, or a list")
        text_pair = _listed("text_pair", asked.text_pair, max_texts)
        if len(text_pair) != len(texts):
            raise HTTPException(422, f"text_pair: found {len(text_pair)} for {len(texts)} texts; each needs one")
    sizes = [num_characters(text) for text in texts]
    for place, text in enumerate(text_pair or ()):
        sizes[place] += num_characters(text)
    for place, size in enumerate(sizes):
        if size > max_characters:
            where = "the text" if is_one else f"text {place}"
            raise HTTPException(
                422, f"texts: {where} has {size:,} characters; a text may have {max_characters:,}: send its parts"
            )
    most = max_characters * (1 if asked.all_scores else TEXTS_IN_FULL)
    if sum(sizes) > most:
        scores = " with all scores" if asked.all_scores else ""
        raise HTTPException(
            422, f"texts: found {sum(sizes):,} characters; a request{scores} may have {most:,}: send several requests"
        )
    return is_one, texts, text_pair


def _listed(key: str, value: Any, most: int) -> list[Any]:
    """Texts as a list. Their number comes first: there may be millions, and each is looked at."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise HTTPException(422, f"{key}: expected a text or a list of texts, found {_called(value)}")
    if not value:
        raise HTTPException(422, f"{key}: the list is empty; expected at least one text")
    if len(value) > most:
        raise HTTPException(422, f"{key}: found {len(value):,}; a request may have {most:,}: send several requests")
    for place, one in enumerate(value):
        for number, word in enumerate(one if isinstance(one, list) else ()):
            if not isinstance(word, str):
                raise HTTPException(422, f"{key}: word {number} of text {place} is {_called(word)}; expected a string")
        if not isinstance(one, str | list):
            raise HTTPException(422, f"{key}: text {place} is {_called(one)}; expected a string, or a list of words")
    return value


def _called(value: Any) -> str:
    """What JSON calls it."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
