"""Texts that are odd, and answers that are alike."""

from typing import Any

import pytest

TEXTS = ["anna loves rome .", "", "bob", "the good film of acme " * 9, " \t\n", "uning teas ! ?"]
ODD = [
    "👩‍👩‍👧 anna 🇫🇷 👍🏽!",
    "e\u0301te\u0301 ne\u0308w",
    "a\tb\r\n\u2028c\u00a0d",
    "אנה אוהבת את rome, مرحبا بالعالم",
    "a\ud800b \udfff x",
    "\u200b \u200d x\u200by \ufeff \u2060",
    "𝒜𝒷 東京タワー \x00\x1f\x85",
    "x" * 60 + " anna",
]


def assert_alike(one: Any, two: Any) -> None:
    """Equal but for the last digits of scores."""
    if isinstance(one, float):
        assert two == pytest.approx(one, abs=2e-5)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_alike(a, b)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_alike(one[key], two[key])
    else:
        assert one == two
