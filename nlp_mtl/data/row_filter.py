"""Training rows that are left out: too short, too long, or the same text again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlp_mtl.errors import MissingExtraError

_STRETCH = 5
"""Characters of the stretches that near duplicates share: as they do, whatever the language and how short a text."""

_PERMUTATIONS = 128
"""Of MinHash: the similarity that it guesses is off by 0.09 at most, mostly; pairs that it finds are then compared."""

_LOWER = 0.2
"""What is asked of hashing is that much lower: of pairs at what it is asked for it finds about half."""

_VERSION = 2
"""Part of the cache key; raised when other rows would be left out."""


class Row(NamedTuple):
    """What a filter looks at."""

    words: int
    key: str
    """Its words, joined: of both texts of a pair."""


class LeftOut(NamedTuple):
    """Which rows are left out, and why."""

    why: np.ndarray
    """[rows] A place in ``REASONS``; 0: it stays."""
    same_as: np.ndarray
    """[rows] The row that a duplicate is one of; -1: a row that is evaluated on, or it is none."""


REASONS = ("kept", "min_words", "max_words", "exact", "near")


@dataclass(frozen=True)
class RowFilter:
    """The recipe's keys of the same names."""

    drop_duplicates: str | None = None
    duplicate_threshold: float = 0.8
    min_words: int | None = None
    max_words: int | None = None

    def __bool__(self) -> bool:
        return self.drop_duplicates is not None or self.min_words is not None or self.max_words is not None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def left_out(self, train: Iterable[Row], evaluated: Iterable[Row]) -> LeftOut:
        """Which training rows are left out.

        Args:
            evaluated: rows that scores are told of; a training row that is the same would make them too good.

        Raises:
            MissingExtraError: near duplicates are wanted, and datasketch is not installed.
        """
        exact: dict[bytes, int] = {}
        near = _Near(self.duplicate_threshold) if self.drop_duplicates == "near" else None
        if self.drop_duplicates is not None:
            for row in evaluated:
                if row.words and exact.setdefault(_digest(row.key), -1) == -1 and near is not None:
                    near.add(row.key, -1)
        why: list[int] = []
        same_as: list[int] = []
        for place, row in enumerate(train):
            reason, other = self._look(row, exact, near)
            if reason == "kept" and row.words and self.drop_duplicates is not None:
                exact[_digest(row.key)] = place
                if near is not None:
                    near.add(row.key, place)
            why.append(REASONS.index(reason))
            same_as.append(other)
        return LeftOut(np.array(why, dtype=np.int8), np.array(same_as, dtype=np.int64))

    def _look(self, row: Row, exact: dict[bytes, int], near: "_Near | None") -> tuple[str, int]:
        if self.min_words is not None and row.words < self.min_words:
            return "min_words", -1
        if self.max_words is not None and row.words > self.max_words:
            return "max_words", -1
        if self.drop_duplicates is None or not row.words:
            return "kept", -1
        other = exact.get(_digest(row.key))
        if other is not None:
            return "exact", other
        other = None if near is None else near.find(row.key)
        return ("kept", -1) if other is None else ("near", other)

    def told(self, found: LeftOut, labels_of: Callable[[np.ndarray], Sequence[Any]]) -> str:
        """What was left out, in words a user can follow.

        Args:
            labels_of: the labels of some rows.
        """
        parts = []
        for reason, what in (
            ("min_words", f"of fewer than {self.min_words} words"),
            ("max_words", f"of more than {self.max_words} words"),
            ("exact", "the same as"),
            ("near", "nearly the same as"),
        ):
            rows = np.flatnonzero(found.why == REASONS.index(reason))
            if reason in ("exact", "near"):
                of_evaluated = int((found.same_as[rows] < 0).sum())
                counts = ((len(rows) - of_evaluated, "an earlier row"), (of_evaluated, "a row that is evaluated on"))
                parts += [f"{count:,} {what} {other}" for count, other in counts if count]
            elif len(rows):
                parts.append(f"{len(rows):,} {what}")
        again = np.flatnonzero(found.same_as >= 0)
        pairs = zip(labels_of(again), labels_of(found.same_as[again]), strict=True)
        disagreeing = sum(one != other for one, other in pairs)
        end = f"; {disagreeing:,} of them with other labels than the row that stays" if disagreeing else ""
        return ", ".join(parts) + end


def remembered(folder: Path | None, parts: Sequence[Any], find: Callable[[], LeftOut]) -> LeftOut:
    """What :meth:`RowFilter.left_out` found earlier, for other processes and later runs; else what ``find`` finds.

    Args:
        folder: where it is kept; None: nowhere.
        parts: what it follows from, as plain values.
    """
    if folder is None:
        return find()
    digest = hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()[:32]
    file = folder / f"left-out-{digest}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            return LeftOut(kept["why"], kept["same_as"])
    found = find()
    aside = folder / f"left-out-{digest}-{os.getpid()}.npz"
    np.savez_compressed(aside, **found._asdict())
    aside.replace(file)
    return found


def rows_of(columns: Iterable[Sequence[Any]], words_of: Callable[[Any], list[str]]) -> Iterator[Row]:
    """What a filter looks at, of rows that come as tuples of one text, or two.

    Args:
        words_of: the cleaned words of a text, or of a list of words.
    """
    for texts in columns:
        words = [words_of(text) for text in texts]
        yield Row(sum(map(len, words)), "\n".join(map(" ".join, words)))


class _Near:
    """Texts that were seen, by MinHash (Broder, 1997) and locality-sensitive hashing of datasketch."""

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            message = "datasketch is needed for drop_duplicates: near: pip install 'nlp_mtl[cleaning]'"
            raise MissingExtraError(message) from error
        self._threshold = threshold
        self._empty = MinHash(num_perm=_PERMUTATIONS, seed=1)
        self._seen = MinHashLSH(threshold=max(threshold - _LOWER, 0.05), num_perm=_PERMUTATIONS)
        self._texts: list[tuple[str, int]] = []
        self._last: tuple[str, Any] = ("", None)

    def add(self, text: str, place: int) -> None:
        self._seen.insert(len(self._texts), self._sketch(text), check_duplication=False)
        self._texts.append((text, place))

    def find(self, text: str) -> int | None:
        """The first row that is nearly the same; None: there is none."""
        stretches = _stretches(text)
        for other in sorted(self._seen.query(self._sketch(text))):
            seen, place = self._texts[int(other)]
            others = _stretches(seen)
            if len(stretches & others) >= self._threshold * len(stretches | others):
                return place
        return None

    def _sketch(self, text: str) -> Any:
        if self._last[0] != text:
            sketch = self._empty.copy()
            sketch.update_batch([one.encode(errors="surrogatepass") for one in _stretches(text)])
            self._last = (text, sketch)
        return self._last[1]


def _stretches(text: str) -> set[str]:
    text = text.casefold()
    return {text[start : start + _STRETCH] for start in range(max(1, len(text) - _STRETCH + 1))}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
