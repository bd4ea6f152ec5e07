"""The process that serves: its socket, its end."""

import gc
import logging
import math
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from nlp_mtl.errors import RunError
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.serving.app import make_app
from nlp_mtl.serving.bodies import LINGER
from nlp_mtl.serving.protocol import BoundedProtocol
from nlp_mtl.serving.settings import Settings

WAITING_CONNECTIONS = 2048
"""That were not accepted yet, at most."""

logger = logging.getLogger(__name__)


def serve(
    nlp: Predictor, settings: Settings, listener: socket.socket, *, on_ready: Callable[[], object] = lambda: None
) -> None:
    """Serve until SIGTERM or Ctrl-C; what is asked by then is still answered.

    Args:
        listener: that :func:`bound` gave.
        on_ready: called when the first request can come.

    Raises:
        RunError: the address cannot be had.
        KeyboardInterrupt: it was Ctrl-C.
    """
    _allow_many_connections()
    try:
        listener.listen(WAITING_CONNECTIONS)
    except OSError as error:  # another took the address at the same time
        host, port = listener.getsockname()[:2]
        raise _unavailable(host, port, error) from error
    server = make_server(nlp, settings, on_ready)
    gc.collect()
    gc.freeze()  # the libraries stay: without going through them, p99 of 64 clients was 0.5 s instead of 0.7
    # The server sends itself the signal again when it has ended: that is an end like others.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    if not server.started:
        raise RunError("the server could not start: the model does not answer")


def make_server(nlp: Predictor, settings: Settings, on_ready: Callable[[], object]) -> uvicorn.Server:
    """A server that was not started yet. ``on_ready`` is called when it was."""
    config = uvicorn.Config(
        make_app(nlp, settings), log_config=None, access_log=False, server_header=False, lifespan="on", ws="none",
        backlog=WAITING_CONNECTIONS, loop="asyncio", http=BoundedProtocol,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(settings.body_timeout + settings.timeout + LINGER),
    )  # fmt: skip
    return _Server(config, on_ready)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal: an end when what was asked is answered. A second: at once, as nothing is to be saved."""
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        connections = self.server_state.connections  # counted here: a signal comes between an answer and its end
        if asked := sum(isinstance(one, BoundedProtocol) and one.is_answering for one in connections):
            logger.info("Answering what was asked (requests: %d); a second signal ends at once", asked)
        await super().shutdown(sockets)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which refuses connections until somebody serves there.

    Args:
        port: 0 takes a free one.

    Raises:
        RunError: it cannot be had.
    """
    try:
        flags = socket.AI_PASSIVE
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
        # With its protocol, by which asyncio knows it as one whose answers must not wait for more (TCP_NODELAY).
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _unavailable(host, port, error) from error
    try:
        if os.name == "posix":  # elsewhere it lets two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _unavailable(host, port, error) from error
    return listener


def _unavailable(host: str, port: int, error: Exception) -> RunError:
    return RunError(f"cannot serve on {host}, port {port}: {error}. Choose others with --host and --port")


def address(listener: socket.socket, host: str) -> str:
    """Where a browser finds a socket."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_many_connections() -> None:
    """As many open files as the system allows: each connection is one."""
    try:
        import resource
    except ImportError:  # not on Windows, where there is no such limit
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if most == resource.RLIM_INFINITY else most
    if now != resource.RLIM_INFINITY:
        with suppress(ValueError, OSError):  # the system has a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, wanted), most))
