"""What requests and responses hold, for checks and for the OpenAPI page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema

_TEXT = {"type": "string"}
_WORDS = {"type": "array", "items": _TEXT}
_TEXTS = {
    "anyOf": [
        {"title": "one text", **_TEXT},
        {"title": "several texts", **_WORDS, "minItems": 1},
        {"title": "several texts as lists of words", "type": "array", "items": _WORDS, "minItems": 1},
    ]
}

MOST_TASKS = 1000
"""Names of tasks in a request: more are a mistake, and each is looked at."""


def _checked_tasks(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value[:MOST_TASKS]):
        raise ValueError("expected a list of names of tasks, or null for all")
    if not 0 < len(value) <= MOST_TASKS:
        raise ValueError(f"found {len(value):,} names of tasks; expected 1 to {MOST_TASKS:,}, or null for all")
    return value


# Looked at by `given.py`: pydantic would tell of each alternative, and look at each of millions of texts.
Texts = Annotated[Any, WithJsonSchema(_TEXTS)]
OtherTexts = Annotated[Any, WithJsonSchema({"anyOf": [*_TEXTS["anyOf"], {"type": "null"}]})]


class PredictRequest(BaseModel):
    """Texts to answer; the names are those of a call of a predictor."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"texts": "Anna moved to Oslo."}]})

    texts: Texts = Field(description="One text, or several: strings, or lists of words.")
    text_pair: OtherTexts = Field(None, description="The second text, or that of each, for tasks of pairs.")
    tasks: Annotated[list[str] | None, BeforeValidator(_checked_tasks)] = Field(
        None, min_length=1, max_length=MOST_TASKS, description="Names of tasks. Default: all that read what is given."
    )
    all_scores: StrictBool = Field(False, description="Give the probabilities of all labels as well.")


Scores = Annotated[dict[str, float] | None, Field(description="The probability of each label, with `all_scores`.")]


class Span(BaseModel):
    """A span, or a word, and its label."""

    text: str
    label: str
    start: int = Field(description="Characters (Unicode code points) of the text; of words, joined by spaces.")
    end: int
    score: float
    scores: Scores = None


class Label(BaseModel):
    """The label of a text; null where it holds no word."""

    label: str | None
    score: float | None
    scores: Scores = None


class HeldLabel(BaseModel):
    """One of a text's labels."""

    label: str
    score: float
    holds: bool | None = Field(None, description="With `all_scores`, where all labels are given.")


class Number(BaseModel):
    """The number of a text; null where it holds no word."""

    value: float | None


Predictions = dict[str, list[Span] | list[HeldLabel] | Label | Number]


class PredictResponse(BaseModel):
    """``{task: answer}``, or a list of them where ``texts`` was a list."""

    predictions: Predictions | list[Predictions]


class TaskInfo(BaseModel):
    """A task of the model."""

    name: str
    type: str
    answer: Literal["spans", "words", "label", "labels", "value"] = Field(description="What its answers are.")
    labels: list[str] = Field(description="Of spans: their kinds.")
    pairs: bool = Field(description="Whether it reads two texts.")


class Limits(BaseModel):
    """What a request may hold."""

    max_texts: int
    max_characters: int = Field(description="Of a text, with its second one.")
    max_body: int = Field(description="Bytes.")


class TasksResponse(BaseModel):
    """The model's tasks."""

    model: str
    tasks: list[TaskInfo]
    limits: Limits


class Health(BaseModel):
    """Whether texts are answered."""

    status: Literal["ok", "failed"]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str
