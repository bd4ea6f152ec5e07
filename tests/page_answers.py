"""Tasks of all kinds, and answers as a model might give them, for the tests of the page."""

from typing import Any

SPANS = {"name": "ner", "type": "token-classification", "answer": "spans", "labels": ["PER", "LOC"], "pairs": False}
WORDS = {"name": "pos", "type": "token-classification", "answer": "words", "labels": ["N", "V"], "pairs": False}
LABEL = {"name": "topic", "type": "text-classification", "answer": "label", "labels": ["a", "b"], "pairs": False}
LABELS = {
    "name": "tags",
    "type": "multi-label-classification",
    "answer": "labels",
    "labels": ["x", "y"],
    "pairs": False,
}
VALUE = {"name": "stars", "type": "regression", "answer": "value", "labels": [], "pairs": False}
PAIRS = {**LABEL, "name": "same", "pairs": True}
TEXT = "👩‍👩‍👧 Zoë's tram, 🚋: it's new!\n\n  Oslo\tand Bergen."


def found(text: str, what: str, label: str, **more: Any) -> dict[str, Any]:
    start = text.index(what)
    return {"text": what, "label": label, "start": start, "end": start + len(what), "score": 0.987654, **more}


def written(body: dict[str, Any]) -> dict[str, Any]:
    """Answers as a model might give them, to any text that holds these words."""
    text = body["texts"]
    return {
        "ner": [found(text, "Oslo", "LOC", scores={"B-LOC": 0.9, "O": 0.1})] if "Oslo" in text else [],
        "pos": [found(text, word, "N") for word in dict.fromkeys(text.split())],
        "topic": {"label": "a", "score": 0.75, "scores": {"b": 0.25, "a": 0.75}},
        "tags": [{"label": "x", "score": 0.9, "holds": True}, {"label": "y", "score": 0.2, "holds": False}],
        "stars": {"value": 3.41666},
        "same": {"label": "b", "score": 0.6, "scores": {"b": 0.6, "a": 0.4}},
    }
