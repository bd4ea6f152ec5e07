"""An order of rows of which every stretch holds all labels in proportion."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa


def codes_of(parts: Iterable[pa.Array]) -> np.ndarray:
    """[rows] A number for each value of a column, the same for the same value."""
    codes: dict[Any, int] = {}
    found = [np.zeros(0, dtype=np.int32)]
    for part in parts:
        values = part.dictionary_encode(null_encoding="encode")
        known = [codes.setdefault(value, len(codes)) for value in values.dictionary.to_pylist()]
        found.append(np.array(known, dtype=np.int32)[values.indices.to_numpy()])
    return np.concatenate(found)


def spread(order: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """``order`` with the places of each code spread evenly: any stretch of it holds all codes in proportion."""
    counts = np.bincount(codes)
    by_code = np.argsort(codes[order], kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)  # of each place in ``order``, among those of its code
    ranks[by_code] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.lexsort((order, (ranks + 0.5) / counts[codes[order]]))]
