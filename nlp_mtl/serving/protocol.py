"""How bytes of a connection become requests."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 65_536
"""Bytes that may stand before a body: as much as h11 takes."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's quick one (a request costs half of what it costs with h11), with an end to what comes before a body."""

    _head = 0
    _is_head = True
    _ended = False

    @property
    def is_answering(self) -> bool:
        """Whether a request came whose answer was not sent. (Its task ends a little later.)"""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._ended = False
        super().data_received(data)
        if self._is_head and not self._ended:  # behind a body, most of these bytes may be the body's
            self._head += len(data)
            if self._head > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head, self._is_head = 0, True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came; or what is written like one behind a body."""
        super().on_header(name, value)
        if not self._is_head:
            raise ValueError("trailers are not read")

    def on_message_complete(self) -> None:
        """A request is whole."""
        super().on_message_complete()
        self._ended = True

    def on_headers_complete(self) -> None:
        """All headers came."""
        super().on_headers_complete()
        self._is_head = False
