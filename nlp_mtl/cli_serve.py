"""The verb ``serve``: a model behind HTTP."""

import ipaddress
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nlp_mtl.cli_options import HOW_IT_RUNS, Bf16, Debug, Device, MaxTokens, Threads
from nlp_mtl.errors import MissingExtraError, RunError
from nlp_mtl.serving.settings import Settings
from nlp_mtl.terminal import quiet_libraries

TOKEN = "NLP_MTL_TOKEN"
"""The environment variable that holds the token: other users of a machine see its commands, not this."""

_LIMITS = "What clients may do"


def serve(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a folder with a graph, or a Hub id.")],
    host: Annotated[str, typer.Option(help="The address; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"A file with the token that clients have to send. Or set {TOKEN}.", rich_help_panel=_LIMITS),
    ] = None,
    max_texts: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel=_LIMITS)] = Settings.max_texts,
    max_characters: Annotated[
        int, typer.Option(min=1, help="Of a text.", rich_help_panel=_LIMITS)
    ] = Settings.max_characters,
    max_body: Annotated[
        int, typer.Option(min=1, help="Bytes of a request.", rich_help_panel=_LIMITS)
    ] = Settings.max_body,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Texts that wait.", rich_help_panel=_LIMITS)
    ] = Settings.max_queue,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds until an answer.", rich_help_panel=_LIMITS)
    ] = Settings.timeout,
    batch_wait: Annotated[
        float,
        typer.Option(min=0, max=10, help="Seconds that texts wait for others, at most.", rich_help_panel=HOW_IT_RUNS),
    ] = Settings.batch_wait,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    device: Device = None,
    bf16: Bf16 = False,
    threads: Threads = None,
    max_tokens: MaxTokens = None,
    debug: Debug = False,
) -> None:
    """Serve a model on HTTP, with a page to try it."""
    token = _token(token_file)
    for option, value in (("--timeout", timeout), ("--batch-wait", batch_wait)):
        if not math.isfinite(value):
            raise typer.BadParameter(f"{value} is no number of seconds", param_hint=option)
    try:
        import fastapi  # noqa: F401
        import fastapi_offline  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"serving needs {error.name}: pip install 'nlp_mtl[serve]'") from error
    quiet_libraries()
    from nlp_mtl.inference.predictor import load
    from nlp_mtl.serving.server import address, bound
    from nlp_mtl.serving.server import serve as serve_model

    folder = Path(model).expanduser()
    settings = Settings(
        name=folder.resolve().name if folder.is_dir() else model, max_texts=max_texts, max_characters=max_characters,
        max_body=max_body, max_queue=max_queue, timeout=timeout, batch_wait=batch_wait, token=token,
        hosts=frozenset({"localhost", "127.0.0.1", "[::1]", host}) if token is None and _is_local(host) else None,
    )  # fmt: skip
    with bound(host, port) as listener:  # first: that it is taken is not told after minutes of loading
        nlp = load(
            model, revision=revision, device=device, threads=threads, max_tokens=max_tokens,
            mixed_precision="bf16" if bf16 else "no",
        )  # fmt: skip
        if token is None and not _is_local(host):
            print(
                f"nlp-mtl: whoever reaches {host} can ask this server; --token-file or {TOKEN} asks for a token",
                file=sys.stderr,
            )
        print(f"Loaded {settings.name}: {', '.join(task.name for task in nlp.tasks)}", flush=True)
        ready = f"Serving on {address(listener, host)} (Ctrl-C ends it)"
        serve_model(nlp, settings, listener, on_ready=lambda: print(ready, flush=True))


def _token(file: Path | None) -> str | None:
    """What clients have to send; None: nothing.

    Raises:
        RunError: there is none where there should be, or it cannot be sent.
    """
    if file is None and TOKEN not in os.environ:
        return None
    where = TOKEN if file is None else str(file)
    try:
        token = os.environ[TOKEN] if file is None else file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise RunError(f"{where} cannot be read: {error}") from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RunError(f"{where} holds no token: expected a line of letters, digits and signs, without spaces")
    return token


def _is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
