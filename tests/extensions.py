"""Tiny runs that are extended: what their tests share."""

import random
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file
from tiny_runs import values

from nlp_mtl import Recipe, load, train

OLD = ("ner", "pos", "sentiment")
SPLITS = ("train", "validation", "test")
TEXTS = ["anna loves rome .", "bob sees the teas", "the good film of acme"]


def base_run(folder: Path, **options: Any) -> Path:
    """A run of three tasks that has learned a little: its folder. ``options``: of :func:`tiny_runs.values`."""
    given = values(folder, **{"num_epochs": 4, "eval_every": 24, "dropout": 0.1, **options})
    train(Recipe.from_dict(given))
    return Path(given["output_dir"])


def topics(folder: Path, *, train: int = 40, other: int = 12, seed: int = 5) -> Path:
    """A dataset of texts with a topic that follows from their words, in three files."""
    random_ = random.Random(seed)
    for split, count in {"train": train, "validation": other, "test": other}.items():
        rows = [tiny.text_row(random_) for _ in range(count)]
        topic = [("place" if {"rome", "oslo", "paris"} & {*row["text"].split()} else "other") for row in rows]
        tiny.write_jsonl(
            folder / f"{split}.jsonl",
            [{"text": row["text"], "topic": one} for row, one in zip(rows, topic, strict=True)],
        )
    return folder


def new_values(folder: Path, extension: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A recipe's values that add a topic to :func:`base_run`: 40 rows, 5 steps an epoch."""
    return {
        "data_dir": str(topics(folder / "topics")),
        "datasets": {"news": {"data_files": {split: f"{split}.jsonl" for split in SPLITS}, "text": "text"}},
        "tasks": {"topic": {"type": "text-classification", "dataset": "news", "labels": "topic"}},
        "training": {
            "num_epochs": 1, "batch_size": 8, "max_tokens": 128, "log_every": 1,
            "learning_rate": 2e-3, "head_learning_rate": 1e-2, **training,
        },
        "output_dir": str(folder / "extended"),
        **({} if extension is None else {"extension": extension}),
    }  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The saved model's."""
    return load_file(run / "model" / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parameters of a model that another one has, too, with other values."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def more_of_the_words(base: Path, folder: Path, extension: dict[str, Any]) -> dict[str, Any]:
    """A new task on a dataset that old tasks read."""
    given = new_values(folder, extension)
    given["tasks"] = {"nouns": {"type": "token-classification", "dataset": "words", "labels": "upos"}}
    del given["datasets"]
    return given


def logits(run: Path) -> dict[str, torch.Tensor]:
    nlp = load(run, layout="padded")
    batch = nlp.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        found: dict[str, torch.Tensor] = nlp.model(batch["input_ids"], batch["attention_mask"])
    return found
