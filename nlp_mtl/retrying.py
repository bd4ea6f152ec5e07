"""Asking the Hub again for what fails for the moment."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0
"""How often it is asked, and seconds before the second time; each wait doubles, or is what ``Retry-After`` says."""


def retried(ask: Callable[[], Answer], *, also_unreachable: bool = True) -> Answer:
    """What ``ask`` answers; where the Hub is busy (408, 409, 429, 5xx), it is asked again, later each time.

    Args:
        also_unreachable: also where there is no answer at all.

    Raises:
        Exception: what ``ask`` raised, the last time or for another reason.
    """
    wait = FIRST_WAIT
    for left in reversed(range(TRIES)):
        try:
            return ask()
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if not left or (status < 500 and status not in (408, 409, 429)):
                raise
            told = error.response.headers.get("Retry-After", "")
            pause = min(float(told), LONGEST_WAIT) if told.isdigit() else wait
        except OSError:
            if not left or not also_unreachable:
                raise
            pause = wait
        logger.info("The Hub gives no answer for the moment; it is asked again in %.0f s", pause)
        time.sleep(pause)
        wait *= 2
    raise AssertionError("the last time answers or raises")
