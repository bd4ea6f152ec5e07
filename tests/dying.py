"""A process that ends anywhere, as far as what runs in it can see."""

from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """What ends the process, as far as its work can see."""


def dies(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int) -> Callable[[], None]:
    """The function dies, before it does anything, when it is called for the so manieth time; returns what mends it."""
    real, calls = getattr(place, name), iter(range(10_000))

    def deadly(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, deadly)
    return lambda: monkeypatch.setattr(place, name, real)
