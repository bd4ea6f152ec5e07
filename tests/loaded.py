"""Datasets read from files of a test, and the errors of those that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from nlp_mtl.data.loading import LoadedDataset, load_splits
from nlp_mtl.errors import DataError

ROWS = [{"text": f"text {n}", "label": "abc"[n % 3]} for n in range(60)]


def load(folder: Path, **options: Any) -> LoadedDataset:
    """A dataset ``demo`` with one text and one label column, and nothing carved unless asked for."""
    given = {"text": "text", "label_columns": ["label"], "validation_fraction": 0, "test_fraction": 0}
    return load_splits("demo", data_dir=str(folder), **{**given, **options})


def problem(folder: Path, **options: Any) -> str:
    """The message for a dataset that cannot be loaded, which is one line."""
    with pytest.raises(DataError) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def values(loaded: LoadedDataset, column: str, split: str = "train") -> list[Any]:
    """A column of a split."""
    return list(loaded.splits[split].rows[column])
