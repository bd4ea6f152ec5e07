"""A server of a tiny model, in a thread of its own; a browser, and a page whose answers are written."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Stub, opened, stubbed
from page_answers import LABEL, LABELS, PAIRS, SPANS, VALUE, WORDS, written
from serving_thread import Served, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with stubbed([SPANS, WORDS, LABEL, LABELS, VALUE, PAIRS], written) as one:
        yield one
