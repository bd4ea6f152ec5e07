"""Training data with label errors that are known, and a recipe whose tiny model can learn what is right."""

import json
import random
from pathlib import Path
from typing import Any

import tiny

NOISE = 0.1

Items = set[tuple[int, int]]
"""Rows, and words in them (0: the text), by their numbers in the training file."""


def sure_text_row(draw: random.Random) -> dict[str, Any]:
    """A text of which most words tell the sentiment."""
    label = draw.choice(["negative", "positive"])
    words = draw.choices(sorted(tiny.GOOD if label == "positive" else tiny.BAD), k=3)
    words += draw.choices([word for word in tiny.WORDS if word not in tiny.GOOD | tiny.BAD], k=2)
    draw.shuffle(words)
    return {"text": " ".join(words), "label": label}


def planted(folder: Path, *, train: int, seed: int = 0, **training: Any) -> tuple[dict[str, Any], dict[str, Items]]:
    """A recipe's values, POS and sentiment, and ``{task: where errors were planted}``: a tenth of the labels.

    No texts are held out by the files: validation and test are taken from train.
    """
    draw = random.Random(seed)
    words = [tiny.token_row(draw) for _ in range(train)]
    texts = [sure_text_row(draw) for _ in range(train)]
    places = [(row, word) for row, one in enumerate(words) for word in range(len(one["upos"]))]
    wrong = {
        "pos": {*draw.sample(places, round(NOISE * len(places)))},
        "sentiment": {(row, 0) for row in draw.sample(range(train), round(NOISE * train))},
    }
    for row, word in sorted(wrong["pos"]):
        labels = words[row]["upos"]
        labels[word] = draw.choice([one for one in ("NOUN", "PROPN", "PUNCT", "VERB") if one != labels[word]])
    for row, _ in wrong["sentiment"]:
        texts[row]["label"] = {"positive": "negative", "negative": "positive"}[texts[row]["label"]]
    corpus = tiny.write_corpus(folder / "corpus", seed=seed)
    tiny.write_jsonl(corpus / "words" / "train.jsonl", words)
    tiny.write_jsonl(corpus / "texts" / "train.jsonl", texts)
    given = tiny.recipe(folder, corpus=corpus, **{"learning_rate": 5e-3, "head_learning_rate": 1e-2, **training})
    given["datasets"]["texts"]["data_files"] = {"train": "texts/train.jsonl"}
    del given["tasks"]["ner"]
    return given, wrong


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def found(errors: list[dict[str, Any]], task: str) -> Items:
    """Where a report lists errors of a task."""
    return {(line["row"], line.get("word", 0)) for line in errors if line["task"] == task}
