"""Datasets in memory, and the tasks that read them."""

from typing import Any

import datasets
import numpy as np
import pytest

from nlp_mtl.data.labels import LabelReader, resolve_task
from nlp_mtl.data.loading import LoadedDataset, LoadedSplit
from nlp_mtl.errors import DataError
from nlp_mtl.tasks import Task

CLASSES = datasets.ClassLabel(names=["neg", "pos", "mixed"])


def held(name: str, labels: list[Any], feature: Any = None, test: list[Any] | None = None) -> LoadedDataset:
    """A dataset in memory: a label a row (or a list of them) and a text or words to go with it."""
    is_words = any(isinstance(label, list) for label in labels)
    splits = {}
    for split, values in {"train": labels, "test": test}.items():
        if values is not None:
            column = [["w"] * len(value or ()) for value in values] if is_words else ["t"] * len(values)
            rows = datasets.Dataset.from_dict({"text": column, "label": values})
            if feature is not None:
                rows = rows.cast_column("label", feature)
            splits[split] = LoadedSplit(rows, name, split, np.arange(len(rows)))
    return LoadedDataset(name, "text", is_words, splits)


def resolve(*held_: LoadedDataset, **options: Any) -> tuple[Task, dict[str, LabelReader]]:
    is_words = held_[0].is_words
    type_ = options.pop("type", "token-classification" if is_words else "text-classification")
    columns = {dataset.name: "label" for dataset in held_}
    return resolve_task("task", type_, columns, {dataset.name: dataset for dataset in held_}, **options)


def problem(*held_: LoadedDataset, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        resolve(*held_, **options)
    assert "`task`" in str(error.value)
    return str(error.value)
