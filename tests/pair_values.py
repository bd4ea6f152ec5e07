"""A tiny corpus of pairs of texts, and a recipe that learns from it."""

import random
from pathlib import Path
from typing import Any

import tiny

from nlp_mtl.tasks import Task

SAME = Task("same", "text-classification", ("no", "yes"), "accuracy", pairs=True)


def pair_row(random_: random.Random) -> dict[str, Any]:
    one, other = tiny.text_row(random_), tiny.text_row(random_)
    both = len({*one["text"].split()} & {*other["text"].split()})
    return {
        "first": one["text"],
        "second": other["text"],
        "same": ["no", "yes"][one["label"] == other["label"]],
        "close": both / 2,
    }


def pair_values(folder: Path, **training: Any) -> dict[str, Any]:
    """A recipe's values: two tasks on pairs, and the usual ones on single texts and words."""
    given = tiny.recipe(folder, **training)
    random_ = random.Random(2)
    files = {}
    for split, count in {"train": 40, "validation": 12, "test": 12}.items():
        rows = [pair_row(random_) for _ in range(count)]
        tiny.write_jsonl(folder / "corpus" / "pairs" / f"{split}.jsonl", rows)
        files[split] = f"pairs/{split}.jsonl"
    given["datasets"]["pairs"] = {"data_files": files, "text": "first", "text_pair": "second"}
    given["tasks"]["same"] = {"type": "text-classification", "dataset": "pairs", "labels": "same"}
    given["tasks"]["close"] = {"type": "regression", "dataset": "pairs", "labels": "close"}
    del given["tasks"]["pos"]
    return given
