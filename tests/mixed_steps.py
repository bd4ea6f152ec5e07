"""Steps that mix two token tasks on one tiny dataset with a text task on another."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from tiny import text_row, token_row, tokenizer

from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.encoding import encode_split
from nlp_mtl.data.items import Framing, frame
from nlp_mtl.data.labels import LabelReader
from nlp_mtl.data.loading import LoadedDataset, LoadedSplit
from nlp_mtl.data.sampling import Sampler
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.tasks import Task

NER = Task(
    "ner", "token-classification",
    ("O", "B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER"), "span_f1", 1.0,
)  # fmt: skip
POS = Task("pos", "token-classification", ("NOUN", "PROPN", "PUNCT", "VERB"), "accuracy", 0.5)
SENTIMENT = Task("sentiment", "text-classification", ("negative", "positive"), "accuracy", 2.0)
TASKS = (NER, POS, SENTIMENT)
COLUMNS = {"ner": "ner", "pos": "upos", "sentiment": "label"}
MAX_LENGTH = 16
"""Of a window, special tokens counted."""


def framing() -> Framing:
    return frame(tokenizer(), MAX_LENGTH, window_overlap=4)


def encoded(name: str, rows: list[dict[str, Any]], tasks: Sequence[Task]) -> EncodedSplit:
    """Rows with ``tokens`` or ``text``, encoded by the package's own code."""
    texts = Value("string")
    words = List(texts)
    features = Features({column: words if column in ("tokens", "ner", "upos") else texts for column in rows[0]})
    column = "tokens" if "tokens" in rows[0] else "text"
    source = LoadedSplit(Dataset.from_list(rows, features=features), name, "train", np.arange(len(rows)))
    loaded = LoadedDataset(name, column, column == "tokens", {"train": source})
    readings = [(task, COLUMNS[task.name], LabelReader(task.name, task.labels, None, {})) for task in tasks]
    return encode_split(loaded, "train", readings, tokenizer(), "whitespace")


def word_rows() -> list[dict[str, Any]]:
    """7 rows: one longer than a window, one without NER, one without a word."""
    random_ = random.Random(0)
    rows = [token_row(random_) for _ in range(5)]
    parts = [token_row(random_) for _ in range(4)]
    rows.append({column: [value for part in parts for value in part[column]] for column in rows[0]})
    rows[1] |= {"tokens": ["uning", "\u200b", "xxx", "teas"], "ner": None, "upos": ["VERB", "NOUN", "NOUN", "NOUN"]}
    rows.append({"tokens": [], "ner": [], "upos": []})
    return rows


def text_rows() -> list[dict[str, Any]]:
    """8 rows: one of many windows, an empty one, one without a label."""
    random_ = random.Random(1)
    rows = [text_row(random_) for _ in range(6)]
    rows[2]["label"] = None
    rows.append({"text": " ".join(text_row(random_)["text"] for _ in range(9)), "label": "negative"})
    rows.append({"text": "", "label": "positive"})
    return rows


def splits() -> list[EncodedSplit]:
    return [encoded("words", word_rows(), [NER, POS]), encoded("texts", text_rows(), [SENTIMENT])]


def steps(
    splits: Sequence[EncodedSplit], *, rates: Sequence[float] | None = None, batch_size: int = 15, **options: Any
) -> StepDataset:
    """All rows in one step, unless told otherwise. ``options``: of :class:`StepDataset`."""
    sizes = [len(split) for split in splits]
    rates = rates or [size / sum(sizes) for size in sizes]
    sampler = Sampler(sizes, rates, batch_size=batch_size, num_rows=2 * sum(sizes), seed=3)
    return StepDataset(splits, sampler, TASKS, framing(), **{"max_tokens": 64, "micro_batch_cost": 8, **options})
