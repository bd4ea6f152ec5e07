"""What is wrong with a recipe's compression, which only shows when its keys are held against each other."""

from collections.abc import Iterator
from typing import Any

from nlp_mtl.errors import Problem
from nlp_mtl.strategy_checks import number

IMPORTANCE_ROWS = 1024
"""``importance_rows``, where the recipe does not say."""


def compression_problems(compression: dict[str, Any], extension: Any) -> Iterator[Problem]:
    """Keys that nothing reads, or that do not go together. Reads raw values, whatever they are."""
    if compression.get("model") is not None and extension is not None:
        yield Problem("compression.model", "the model that `extension` names is the one that training starts from")
    has_words = bool(compression.get("vocabulary") or compression.get("vocabulary_files"))
    for key, default in (("keep_characters", True), ("vocabulary_size", None)):
        if compression.get(key, default) is not default and not has_words:
            yield Problem(f"compression.{key}", "only `vocabulary` and `vocabulary_files` read it: give one")
    if compression.get("magnitude_scope", "global") != "global" and not _is_set(compression, "magnitude"):
        yield Problem("compression.magnitude_scope", "only `magnitude` reads it: give that as well")
    prunes = _is_set(compression, "heads") or _is_set(compression, "intermediate")
    if number(compression.get("importance_rows", IMPORTANCE_ROWS)) != IMPORTANCE_ROWS and not prunes:
        yield Problem("compression.importance_rows", "only `heads` and `intermediate` read it: give one of them")


def _is_set(compression: dict[str, Any], key: str) -> bool:
    return number(compression.get(key) or 0) != 0
