"""One HTTP connection of uvicorn, with time limits for sending a request and reading an answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection that closes if a request does not arrive, or an answer is not read, in time.

    Attributes:
        arrive_s: longest time from the start of a connection or request to the request's last byte.
        read_s: longest time for which a peer may leave an answer unread.
    """

    arrive_s = 30.0
    read_s = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called when a peer has connected and its TLS handshake is done."""
        super().connection_made(transport)
        # asyncio does this only for sockets that name their protocol. Without it an answer in two
        # pieces takes 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the connection is closed."""
        self._arriving, self._unread = _stop(self._arriving), _stop(self._unread)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called with a piece of a request."""
        if self._arriving is None and (self.cycle is None or self.cycle.response_complete):
            self._await_request()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.more_body:
            self._arriving = _stop(self._arriving)

    def pause_writing(self) -> None:
        """Called when the peer does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.read_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Called when the peer reads again."""
        self._unread = _stop(self._unread)
        super().resume_writing()

    def _await_request(self) -> None:
        self._arriving = self.loop.call_later(self.arrive_s, self.transport.close)


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer; returns None, to be stored in its place."""
    if timer is not None:
        timer.cancel()
    return None
