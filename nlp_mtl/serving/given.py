"""What a request asks about: checked against what a request may hold."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException

from nlp_mtl.errors import did_you_mean, first_line
from nlp_mtl.inference.texts import sizes_of
from nlp_mtl.serving.schemas import PredictRequest

TEXTS_IN_FULL = 10
"""How many of the longest texts a request may hold; with all scores, whose answers are larger by as much, one."""

PROBLEMS_TOLD = 5
"""Of a body that has thousands, these say enough."""


def read_request(body: bytes, media_type: str) -> PredictRequest:
    """What a body asks. (FastAPI would read it as well, in twice the time, and with messages for programmers.)

    Raises:
        HTTPException: it is not said to be JSON, is none, or holds something else.
    """
    if not _is_json(media_type):  # pages of other sites can send other kinds without being asked
        given = f"`{media_type:.80}`" if media_type else "nothing"
        raise HTTPException(415, f"content-type says {given}; expected `application/json`")
    try:
        found = json.loads(body)
    except json.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error.msg} (character {error.pos})") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, too deep
        raise HTTPException(400, f"the body is not JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise HTTPException(422, 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}')
    try:
        return PredictRequest.model_validate(found)
    except ValidationError as error:
        told = error.errors(include_url=False)
        rest = f"; and {len(told) - PROBLEMS_TOLD:,} more" if len(told) > PROBLEMS_TOLD else ""
        raise HTTPException(422, "; ".join(map(_told, told[:PROBLEMS_TOLD])) + rest) from error


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _told(error: Mapping[str, Any]) -> str:
    """What is wrong with a key, without what it holds."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        names = PredictRequest.model_fields
        return f"{where:.60}: there is no such key; expected {', '.join(names)}.{did_you_mean(where, names)}"
    if error["type"] == "missing":
        return f"{where}: it is missing"
    if error["type"] == "bool_type":
        return f"{where}: expected true or false, found {_called(error['input'])}"
    if not where:
        return "a key is no text in Unicode"
    return f"{where:.60}: {error['msg'].removeprefix('Value error, ')}"


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
    sizes = sizes_of(texts, text_pair)
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
