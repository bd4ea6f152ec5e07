"""What is told on the terminal: errors as one message, our own words alone, of several processes one."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import typer

from nlp_mtl.errors import NlpMtlError, RunStopped


def told(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose errors become one message on stderr and exit code 2, unless ``--debug`` is given."""

    @wraps(verb)
    def run(**options: Any) -> None:
        try:
            verb(**options)
        except RunStopped as error:
            if is_first_process():
                hint = " (--resume, or --resume auto)" if verb.__name__ in ("train", "extend") else ""
                print(f"nlp-mtl: {error}{hint}", file=sys.stderr)
            raise typer.Exit(130 if error.by_hand else 75) from error  # 75: EX_TEMPFAIL of sysexits.h, try again
        except NlpMtlError as error:
            if options["debug"]:
                traceback.print_exception(error)
            print(f"nlp-mtl: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            hint = _STOPPED.get(verb.__name__, "")
            print(f"nlp-mtl: stopped{hint}", file=sys.stderr)
            raise typer.Exit(130) from error
        except BrokenPipeError:
            nobody_reads()

    return run


_AGAIN = ". `--resume auto` goes on from the newest checkpoint, or starts again where there is none"
_STOPPED = {
    "train": _AGAIN,
    "extend": _AGAIN,
    "compare": ". The same command goes on",
    "label_errors": ". The same command goes on",
    "tune": ". The same command goes on",
}


def nobody_reads() -> None:
    """The reader of our output went away (`| head`): nothing is wrong, and nobody is there to be told."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quiet_libraries() -> None:
    """Our own words on stderr; the libraries' only where something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("nlp_mtl").setLevel(logging.INFO if is_first_process() else logging.WARNING)
    from rich.console import Console

    # It takes seconds, and nothing else would be seen.
    shown = sys.stderr.isatty() and is_first_process()
    with Console(stderr=True).status("Loading libraries") if shown else nullcontext():
        import accelerate  # noqa: F401
        import datasets
        import transformers

    # The Hub's client tells each of its retries; what comes of them is told in our words.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors reach users in our words
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # also those of downloads
        datasets.disable_progress_bars()


def is_first_process() -> bool:
    """Whether this is the process that speaks: of several, the first."""
    return os.environ.get("RANK", "0") == "0"
