"""The texts of a recipe's data that predictions are timed on."""

from collections.abc import Mapping
from typing import Any

from nlp_mtl.build_data import Prepared

TIMED_TEXTS = 512
"""Texts at most, or pairs of them."""


def timed_texts(prepared: Prepared, splits: Mapping[str, str]) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The first texts of datasets, single ones and pairs, as a predictor takes them.

    Args:
        splits: ``{dataset: split}``
    """
    texts: list[Any] = []
    pairs: list[tuple[Any, Any]] = []
    for dataset, split in splits.items():
        loaded = prepared.loaded[dataset]
        rows = loaded.splits[split].rows[: max(1, TIMED_TEXTS // len(splits))]
        first, *second = ([_given(cell, loaded.is_words) for cell in rows[name]] for name in loaded.text_columns)
        if second:
            pairs += zip(first, second[0], strict=True)
        else:
            texts += first
    return texts, pairs


def _given(cell: Any, is_words: bool) -> Any:
    """A cell as a predictor takes it."""
    return [word for word in cell or () if word is not None] if is_words else cell or ""
