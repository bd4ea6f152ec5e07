"""Tiny runs with a task of each type: what the tests of task types share."""

import random
from pathlib import Path
from typing import Any

from tiny import BAD, GOOD, NAMES, WORDS, recipe, save_encoder, text_row, token_row, write_jsonl

TAGS = ("good", "person", "place")


def typed_row(random_: random.Random) -> dict[str, Any]:
    """A text with a sentiment, tags and a rating that follow from its words."""
    row = text_row(random_)
    words = row["text"].split()
    kinds = {"PER": "person", "LOC": "place"}
    tags = {kinds[NAMES[word]] for word in words if NAMES.get(word) in kinds} | {
        "good" for word in words if word in GOOD
    }
    rating = 2.5 + sum(word in GOOD for word in words) - sum(word in BAD for word in words) + 0.25 * (len(words) % 3)
    return {**row, "tags": sorted(tags), "rating": rating}


def write_typed_corpus(folder: Path, *, train: int = 48, other: int = 16, seed: int = 0) -> Path:
    """``words`` with two token tasks, ``texts`` with three text tasks."""
    random_ = random.Random(seed)
    for split, count in {"train": train, "validation": other, "test": other}.items():
        write_jsonl(folder / "words" / f"{split}.jsonl", [token_row(random_) for _ in range(count)])
        write_jsonl(folder / "texts" / f"{split}.jsonl", [typed_row(random_) for _ in range(count)])
    return folder


def values(folder: Path, *, dropout: float = 0.0, **training: Any) -> dict[str, Any]:
    """A recipe's values: token, text, multi-label classification and regression."""
    corpus, encoder = write_typed_corpus(folder / "corpus"), save_encoder(folder / "encoder", dropout=dropout)
    rates = {"learning_rate": 2e-3, "head_learning_rate": 1e-2}
    given = recipe(folder, corpus=corpus, encoder_folder=encoder, **{**rates, **training})
    del given["tasks"]["ner"]
    given["tasks"]["tags"] = {"type": "multi-label-classification", "dataset": "texts", "labels": "tags"}
    given["tasks"]["rating"] = {"type": "regression", "dataset": "texts", "labels": "rating"}
    return given


def learning(folder: Path) -> dict[str, Any]:
    """The same with enough steps to learn what can be learned."""
    given = values(folder, num_epochs=60, eval_every=90)
    write_typed_corpus(folder / "corpus", train=160, other=40)
    assert len(WORDS) > 20
    return given
