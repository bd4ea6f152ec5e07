"""The exceptions of nlp_mtl.

NlpMtlError
├── RecipeError          a recipe has problems; ``problems`` lists all of them
├── DataError            a dataset cannot be read, or does not hold what the recipe says
├── ModelError           an encoder or a model folder cannot be used
├── TrainingError        training cannot go on (a loss is not a number, ...)
├── RunError             a run folder is in the way, incomplete, or belongs to another recipe
├── HubError             the Hub refused something, or cannot be reached
├── RunStopped           a run was asked to end, and saved before it did: it can be resumed
└── MissingExtraError    an optional package is not installed; the message names the extra

The command line turns each of them into one message on stderr and exit code 2; RunStopped, into 75.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple


class NlpMtlError(Exception):
    """What all exceptions of this package are."""


class Problem(NamedTuple):
    """One thing that is wrong in a recipe."""

    path: str
    """Where: the keys from the top of the recipe, joined by dots. Empty: the recipe as a whole."""
    message: str
    """What was found, what is expected, and the likely fix."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(NlpMtlError):
    """A recipe has problems. All of them are told at once: ``problems`` of the file ``source``."""

    def __init__(self, problems: Sequence[Problem], source: str = "the recipe") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        super().__init__(f"{source} has {count}:" + "".join(f"\n  {p}" for p in problems))

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[tuple[Problem, ...], str]]:
        return type(self), (self.problems, self.source)  # to be told by another process


class DataError(NlpMtlError):
    """A dataset cannot be read, or does not hold what the recipe says."""


class ModelError(NlpMtlError):
    """An encoder or a model folder cannot be used."""


class TrainingError(NlpMtlError):
    """Training cannot go on."""


class RunError(NlpMtlError):
    """A run folder is in the way, incomplete, or belongs to another recipe."""


class HubError(NlpMtlError):
    """The Hub refused something, or cannot be reached."""


class RunStopped(NlpMtlError):
    """A run was asked to end (SIGTERM, Ctrl-C), and saved a checkpoint before it did."""

    def __init__(self, message: str, by_hand: bool = False) -> None:
        """``by_hand``: whether it was Ctrl-C."""
        super().__init__(message)
        self.by_hand = by_hand


class MissingExtraError(NlpMtlError):
    """An optional package is not installed."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean `x`?`` when one of ``choices`` looks like ``word``, else an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6) if len(word) < 100 else []
    return f" Did you mean `{by_lower[close[0]]}`?" if close else ""


def listed(names: Iterable[object], limit: int = 12) -> str:
    """The names in backticks, comma separated, shortened past ``limit``: for messages."""
    quoted = [f"`{name}`" for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "") or "none"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its kind where none does."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
