"""Columns as a recipe names them: they exist, hold what they should, and have one type in all files."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from nlp_mtl.errors import DataError, did_you_mean, first_line, listed

_TEXT_TYPES = ("string", "large_string")


def check_columns(
    dataset: str,
    source: Mapping[str, Mapping[str, datasets.Dataset]],
    text_columns: Sequence[str],
    is_words: bool,
    label_columns: Sequence[str],
) -> None:
    """Refuse what cannot be read as texts (or, ``is_words``, as lists of words) with labels.

    Args:
        source: ``{split: {file: rows}}``; the file is empty for data from the Hub.

    Raises:
        DataError: a part is empty, lacks a column, or holds no text where it should.
    """
    everywhere = {name for parts in source.values() for rows in parts.values() for name in rows.column_names}
    for split, parts in source.items():
        for file, rows in parts.items():
            place = f"dataset `{dataset}`, split {split}" + (f" ({file})" if file else "")
            if not len(rows):
                raise DataError(f"{place}: it is empty")
            for wanted in (*text_columns, *label_columns):
                if wanted not in rows.column_names:
                    way_out = did_you_mean(wanted, rows.column_names)
                    if not way_out and wanted in everywhere:
                        way_out = " Others have it; `splits: {test: null}` leaves out a test split without labels."
                    raise DataError(
                        f"{place}: there is no column `{wanted}`; it has {listed(rows.column_names)}.{way_out}"
                    )
            for key, column in zip(("tokens" if is_words else "text", "text_pair"), text_columns, strict=False):
                _check_texts(place, key, column, rows.features)


def _check_texts(place: str, key: str, column: str, features: datasets.Features) -> None:
    """``key``: the recipe's key that names the column."""
    feature, is_words = features[column], key == "tokens"
    inner = items_of(feature)
    if is_words and inner is None:
        raise DataError(
            f"{place}: `tokens: {column}` should be a column of word lists, but it holds "
            f"{kind_of(feature)}. If these are texts, use `text: {column}`"
        )
    if not is_words and inner is not None:
        raise DataError(
            f"{place}: `{key}: {column}` should be a column of texts, but it holds lists. "
            f"If these are words, use `tokens: {column}`"
        )
    value = inner if is_words else feature
    # A column in which every row is null has no type of its own; the rows are told by `check`.
    if not (isinstance(value, datasets.Value) and value.dtype in (*_TEXT_TYPES, "null")):
        texts = [name for name, other in features.items() if getattr(other, "dtype", "") in _TEXT_TYPES]
        raise DataError(
            f"{place}: the column `{column}` should hold text, but it holds {kind_of(value)}. "
            f"Columns of text: {listed(texts)}"
        )


def items_of(feature: Any) -> Any:
    """What the lists of a column hold; None: it holds no lists."""
    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None


def kind_of(feature: Any) -> str:
    """What a column holds, in words."""
    items = items_of(feature)
    if items is not None:
        return f"lists of {kind_of(items)}"
    if isinstance(feature, datasets.ClassLabel):
        return f"class labels ({listed(feature.names)})"
    if isinstance(feature, datasets.Json):
        return "values of different types"
    return f"values of type {getattr(feature, 'dtype', type(feature).__name__)}"


def with_common_types(
    dataset: str, source: Mapping[str, Mapping[str, datasets.Dataset]], columns: list[str]
) -> dict[str, dict[str, datasets.Dataset]]:
    """``source`` cut to ``columns``, each of which has the same type in all splits and files.

    Raises:
        DataError: one holds text here and numbers there, or other things that do not go together.
    """
    parts = {
        split: {file: rows.select_columns(columns) for file, rows in files.items()} for split, files in source.items()
    }
    common: dict[str, Any] = {}
    first: dict[str, str] = {}
    for split, files in parts.items():
        for file, rows in files.items():
            for column in columns:
                feature = _feature(rows, column)
                known = common.get(column, feature)
                merged = _merge(known, feature)
                if merged is None:
                    raise DataError(
                        f"dataset `{dataset}`: the column `{column}` holds {kind_of(known)} in {first[column]}, "
                        f"but {kind_of(feature)} in {file or split}"
                    )
                if column not in common or merged != known:
                    common[column], first[column] = merged, file or split
    for column, feature in common.items():
        types = [rows.features[column] for files in parts.values() for rows in files.values()]
        if is_null(feature) and not all(map(is_null, types)):
            common[column] = datasets.Value("string")  # floats that are all null: cannot be cast to nothing
    features = datasets.Features(common)  # type: ignore[arg-type]
    try:
        return {
            split: {file: rows if rows.features == features else rows.cast(features) for file, rows in files.items()}
            for split, files in parts.items()
        }
    except (pa.ArrowInvalid, OverflowError) as error:
        raise DataError(f"dataset `{dataset}`: {listed(columns)} cannot be read: {first_line(error)}") from error


def _feature(rows: datasets.Dataset, column: str) -> Any:
    """A column's type. Floats that are whole numbers or nulls count as such: CSV has class numbers with gaps so."""
    feature = rows.features[column]
    if isinstance(feature, datasets.Value) and feature.dtype.startswith("float"):
        values = rows.data.column(column)
        if values.null_count == len(values):
            return datasets.Value("null")
        if pc.all(pc.equal(pc.floor(values), values)).as_py():
            return datasets.Value("int64")
    return feature


def _merge(left: Any, right: Any) -> Any:
    """The type that holds both; None: there is none. All nulls go with anything, and so do two kinds of numbers."""
    if left == right or is_null(left):
        return right
    if is_null(right):
        return left
    inner = items_of(left), items_of(right)
    if None not in inner:
        merged = _merge(*inner)
        return None if merged is None else datasets.List(merged)
    types = [feature.dtype if type(feature) is datasets.Value else "" for feature in (left, right)]
    if all(name in _TEXT_TYPES for name in types):
        return datasets.Value("large_string")
    if all(name.startswith(("int", "uint")) for name in types):
        return datasets.Value("int64")
    if all(name.startswith(("int", "uint", "float")) for name in types):  # numbers that happen to be whole, and others
        return datasets.Value("float64")
    return None


def is_null(feature: Any) -> bool:
    """Whether a column has no type of its own, for every row of it is null."""
    return isinstance(feature, datasets.Value) and feature.dtype == "null"


def holds_text(feature: Any) -> bool:
    """Whether a column holds texts, or lists of them."""
    inner = items_of(feature) or feature
    return isinstance(inner, datasets.Value) and inner.dtype in _TEXT_TYPES
