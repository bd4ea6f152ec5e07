"""Asking the Hub again for what fails for the moment."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

# HTTPError: of httpx2, or of httpx before huggingface_hub 2.
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

UNANSWERED = (OSError, HTTPError, json.JSONDecodeError)
"""What the Hub's client raises where it gets no answer, a refusal, or an answer that is none of the Hub's."""
_NO_ANSWER = (ConnectionError, TimeoutError, HTTPError, LocalEntryNotFoundError, json.JSONDecodeError)
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
            if not left or not (_may_pass(error) if answer is None and also_unreachable else _is_busy(answer)):
                raise
            told = "" if answer is None else answer.headers.get("Retry-After", "")
        pause = min(float(told), LONGEST_WAIT) if told.isdigit() else wait
        logger.info("The Hub gives no answer for the moment; it is asked again in %.0f s", pause)
        time.sleep(pause)
        wait *= 2
    raise AssertionError("the last time answers or raises")


def _is_busy(answer: Any) -> bool:
    return answer is not None and (answer.status_code >= 500 or answer.status_code in _BUSY)


def _may_pass(error: Exception) -> bool:
    """Whether an error without an answer is the network's: not a file's here, a token's, or wanted."""
    return isinstance(error, _NO_ANSWER) and not isinstance(error, OfflineModeIsEnabled)


def _answer_of(error: BaseException | None) -> Any:
    """What the Hub answered, in an error or one that lies behind it; None: nothing."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error.response
        error = error.__cause__ or error.__context__
    return None
