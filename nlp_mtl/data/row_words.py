"""The words of rows: as they come, or found in texts; cleaned."""

from collections.abc import Callable, Mapping
from typing import Any

from nlp_mtl.data.loading import LoadedDataset
from nlp_mtl.errors import DataError


def words_in(
    loaded: LoadedDataset, batch: Mapping[str, list[Any]], word_splitter: str, where: Callable[[int], str]
) -> tuple[list[list[str]], list[list[str]] | None]:
    """The words of rows, cleaned, and those of their second texts; None: they have none.

    Args:
        batch: the rows' columns.
        where: the place of one of them, for messages.

    Raises:
        DataError: a word is null.
    """
    clean = loaded.cleaning
    if loaded.is_words:
        given = [_words(value, where, place) for place, value in enumerate(batch[loaded.column])]
        return [[clean.text(word) for word in words] for words in given], None
    texts = [[clean.words(text or "", word_splitter)[0] for text in batch[name]] for name in loaded.text_columns]
    return texts[0], texts[1] if len(texts) > 1 else None


def _words(value: list[str | None] | None, where: Callable[[int], str], place: int) -> list[str]:
    if value is None:
        return []
    words = [word for word in value if word is not None]
    if len(words) < len(value):
        raise DataError(f"{where(place)}: word {value.index(None)} is null, expected text")
    return words
