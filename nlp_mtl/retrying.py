"""Asking the Hub again for what fails for the moment."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

# HTTPError: of httpx2, or of httpx before huggingface_hub 2.
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

UNANSWERED = (OSError, HTTPError)
"""What the Hub's client raises where it gets no answer, or a refusal."""
_BUSY = (408, 409, 429)
TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0
"""How often it is asked, and seconds before the second time; each wait doubles, or is what ``Retry-After`` says."""


def retried(ask: Callable[[], Answer], *, also_unreachable: bool = False) -> Answer:
    """What ``ask`` answers; where the Hub is busy (408, 409, 429, 5xx), it is asked again, later each time.

    Args:
        also_unreachable: also where there is no answer at all; for reading, the Hub's client does that itself.

    Raises:
        Exception: what ``ask`` raised, the last time or for another reason.
    """
    wait = FIRST_WAIT
    for left in reversed(range(TRIES)):
        try:
            return ask()
        except UNANSWERED as error:
            answer = _answer_of(error)
            if answer is None and not also_unreachable:
                raise
            if not left or (answer is not None and answer.status_code < 500 and answer.status_code not in _BUSY):
                raise
            told = "" if answer is None else answer.headers.get("Retry-After", "")
        pause = min(float(told), LONGEST_WAIT) if told.isdigit() else wait
        logger.info("The Hub gives no answer for the moment; it is asked again in %.0f s", pause)
        time.sleep(pause)
        wait *= 2
    raise AssertionError("the last time answers or raises")


def _answer_of(error: BaseException | None) -> Any:
    """What the Hub answered, in an error or one that lies behind it; None: nothing."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error.response
        error = error.__cause__ or error.__context__
    return None
