"""What cleaning does to a recipe's texts, for ``nlp-mtl check``."""

from collections.abc import Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

from nlp_mtl.cleaning.cleaning import NOTHING, Cleaning
from nlp_mtl.data.loading import LoadedDataset, LoadedSplit

_SHOWN = 2
"""Texts of a split that are shown before and after."""

_AROUND = 40
"""Characters that are shown of them, before the first that is changed and after it."""


def cleaning_report(
    prediction: Cleaning, loaded: Mapping[str, LoadedDataset], *, word_splitter: str, progress: bool = False
) -> dict[str, Any]:
    """What is done to texts, and to how many.

    Args:
        prediction: what is done there.

    Returns:
        ``prediction``, steps as plain values, and ``splits``: for each that is cleaned ``dataset``, ``split``,
        ``texts`` (of the first rows, for a stream), how many are ``changed``, its ``steps``, and ``examples``, pairs of
        what stands around the first change, before and after.
    """
    splits = []
    for dataset in loaded.values():
        if dataset.cleaning == NOTHING:
            continue
        for split, rows in dataset.splits.items():
            texts = (text for column in dataset.text_columns for text in _texts(rows, column))
            splits.append(_split_report(dataset, split, texts, len(rows.rows), word_splitter, progress))
        if dataset.stream is not None:
            head = dataset.stream.head
            texts = (text for column in dataset.text_columns for text in head[column])
            splits.append(_split_report(dataset, "train", texts, len(head), word_splitter, progress))
    return {"prediction": prediction.to_dict(), "splits": splits}


def _split_report(
    dataset: LoadedDataset, split: str, texts: Iterator[Any], num_rows: int, word_splitter: str, progress: bool
) -> dict[str, Any]:
    changed, examples = 0, list[tuple[str, str]]()
    title = f"Cleaning {dataset.name} {split}"
    for text in tqdm(texts, desc=title, total=num_rows, disable=not progress, leave=False, delay=1):
        before, after = _cleaned(dataset.cleaning, text, word_splitter)
        if before != after:
            changed += 1
            if len(examples) < _SHOWN:
                examples.append(_around(before, after))
    return {
        "dataset": dataset.name, "split": split, "texts": num_rows * len(dataset.text_columns), "changed": changed,
        "steps": dataset.cleaning.to_dict(), "examples": examples,
    }  # fmt: skip


def _cleaned(cleaning: Cleaning, text: Any, word_splitter: str) -> tuple[str, str]:
    """A text, or a list of words, before and after."""
    if isinstance(text, list):
        words = [word or "" for word in text]
        return " ".join(words), " ".join(map(cleaning.text, words))
    return text or "", cleaning.text(text or "", word_splitter)


def _around(before: str, after: str) -> tuple[str, str]:
    limit = min(len(before), len(after))
    place = next((place for place in range(limit) if before[place] != after[place]), limit)
    start = max(0, place - _AROUND)
    left, right = (f"{'...' * bool(start)}{text[start : place + _AROUND]}" for text in (before, after))
    return left, right


def _texts(rows: LoadedSplit, column: str) -> Iterator[Any]:
    for chunk in rows.values(column):
        yield from chunk.to_pylist()
