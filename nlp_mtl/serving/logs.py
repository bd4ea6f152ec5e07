"""What the server logs of errors: where they happened, and nothing of a text."""

import logging

logger = logging.getLogger(__name__)


def log_error(what: str, error: BaseException) -> None:
    """Log an error with its traceback, but without its message, which may quote a text."""
    told = Exception(f"{type(error).__name__} (its message may hold texts, and is left out)")
    logger.error("%s: %s", what, type(error).__name__, exc_info=(Exception, told, error.__traceback__))
