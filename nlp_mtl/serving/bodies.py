"""What is looked at before a request is: who asks, how large its body is, and whether the client is still there."""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nlp_mtl.serving.logs import log_error
from nlp_mtl.serving.refusals import problem

BODIES_AT_ONCE = 16
"""Bodies of the largest size that are held at a time; smaller ones are more."""

SMALL_BODY = 65_536
"""Bytes of a body that is taken also where no larger one would be: connections are few enough."""

LINGER = 2.0
"""Seconds for which the rest of a refused body is read and dropped: a client that is cut off while it sends does not
see why."""


class Refused(Exception):
    """A request that is answered before it is looked at."""

    def __init__(self, status: int, detail: str, *, more: bool = False, **headers: str) -> None:
        """``more``: whether the client may still be sending."""
        super().__init__(detail)
        self.status, self.detail, self.more, self.headers = status, detail, more, headers


class Guard:
    """An ASGI app (https://asgi.readthedocs.io) around another, which sees requests that may ask, with their bodies."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_open: Callable[[str], bool],
        token: str | None,
        hosts: frozenset[str] | None,
        has_body: Callable[[str], bool],
        max_body: int,
        body_timeout: float,
        seconds_to_wait: Callable[[], int],
        on_request: Callable[[str, int, float], object],
    ) -> None:
        """
        Args:
            is_open: whether a path needs no token.
            token: what ``Authorization: Bearer`` should bring; None: nobody is asked for one.
            hosts: names that requests may give the server; None: any.
            has_body: whether the app reads bodies at a path; others are not read.
            max_body: bytes of a body, at most.
            body_timeout: seconds that a body may take to come.
            seconds_to_wait: after which a client that is refused because too much is held may ask again.
            on_request: told of each request its path, the status of its answer and its seconds.
        """
        self._app, self._is_open, self._has_body, self._hosts = app, is_open, has_body, hosts
        self._token = None if token is None else token.encode()
        self._max_body, self._body_timeout = max_body, body_timeout
        self._seconds_to_wait, self._on_request = seconds_to_wait, on_request
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        body = bytearray()
        size = 0
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check_host(headers.get(b"host", b""))
            self._check_token(scope["path"], headers.get(b"authorization", b""))
            if self._has_body(scope["path"]):
                await self._read(body, headers, receive)
            size, content = len(body), bytes(body)
            body.clear()
            await self._pass_on(scope, content, receive, answer)
        except Refused as error:
            await _refuse(error, receive, answer)
        except _GoneError:
            pass
        finally:
            self.held -= size or len(body)
            self._on_request(scope["path"], answer.status, answer.seconds())

    def _check_host(self, given: bytes) -> None:
        """A page of another site can give its own name this machine's address, and then ask as its own server."""
        name, _, port = given.decode("latin-1").lower().rpartition(":")
        name = name if port.isdigit() else given.decode("latin-1").lower()
        if self._hosts is not None and name and name not in self._hosts:
            raise Refused(
                403, f"this server is for its own machine, but was asked as {name!r:.80}: ask as localhost, or start "
                "it with a token", more=True,
            )  # fmt: skip

    def _check_token(self, path: str, given: bytes) -> None:
        if self._token is None or self._is_open(path):
            return
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not secrets.compare_digest(token.strip(), self._token):
            found = "another one" if token and scheme.lower() == b"bearer" else "none"
            raise Refused(
                401, f"this server wants a token, and was given {found}: send the header `Authorization: Bearer TOKEN`",
                more=True, **{"www-authenticate": "Bearer"},
            )  # fmt: skip

    async def _read(self, body: bytearray, headers: dict[bytes, bytes], receive: Receive) -> None:
        """Read a body, as long as it may be and may take."""
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_body:
            raise self._too_large(more=b"expect" not in headers)  # who expects a word before sending gets this one
        try:
            await asyncio.wait_for(self._read_all(body, receive), self._body_timeout)
        except asyncio.TimeoutError as error:
            raise Refused(408, f"the body did not come to its end in {self._body_timeout:g} seconds") from error

    async def _read_all(self, body: bytearray, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            part, more = message.get("body", b""), message.get("more_body", False)
            size = len(body) + len(part)
            if size > self._max_body:
                raise self._too_large(more)
            if size > SMALL_BODY and self.held + len(part) > BODIES_AT_ONCE * self._max_body:
                wait = str(self._seconds_to_wait())
                raise Refused(429, "too many large requests at a time: try again", more=more, **{"retry-after": wait})
            body += part
            self.held += len(part)
            if not more:
                return

    def _too_large(self, more: bool) -> Refused:
        return Refused(413, f"a body may have {self._max_body:,} bytes: send the texts in several requests", more=more)

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, answer: "_Answer") -> None:
        """Let the app answer, for as long as there is a client."""
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                await asyncio.Event().wait()  # for ever: the app is not told of what we listen for
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def answered() -> None:
            await self._app(scope, whole, answer)

        answering = asyncio.create_task(answered())
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answer.whole:
                answering.cancel()
            await asyncio.wait([answering])
        if not answering.cancelled() and (error := answering.exception()) is not None:
            log_error("a request failed", error)
            if answer.started is None:
                raise Refused(500, "the server failed; its log says where")


class _Answer:
    """Sends, and knows what was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._asked = time.perf_counter()
        self.started: float | None = None
        self.status = 499  # as nginx calls a client that left
        self.whole = False

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.started, self.status = time.perf_counter(), message["status"]
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    def seconds(self) -> float:
        """From the request to its answer, or until now."""
        return (self.started or time.perf_counter()) - self._asked


class _GoneError(Exception):
    """The client left."""


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(error: Refused, receive: Receive, send: Send) -> None:
    content = problem(error.detail)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
        **error.headers,
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content, "more_body": error.more})
    if error.more:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drained(receive), LINGER)
        await send({"type": "http.response.body", "body": b""})


async def _drained(receive: Receive) -> None:
    while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
        pass
