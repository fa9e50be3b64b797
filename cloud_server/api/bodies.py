"""Bounds on request bodies: on each body before it is read, and on all bodies held at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from protos.errors import ConfigError, FrameTooLargeError, OverloadedError

SMALL_BYTES = 16 << 10
"""Bodies up to this size do not count against the bound on all bodies."""


class Bodies:
    """The bodies of requests under way.

    Args:
        most_bytes: longest body.
        all_bytes: bound on all large bodies together.
    """

    def __init__(self, most_bytes: int, all_bytes: int) -> None:
        self._most, self._all = most_bytes, max(all_bytes, most_bytes)
        self.held_bytes = 0

    @contextmanager
    def bounded(self, headers: Headers, receive: Receive) -> Iterator[Receive]:
        """Read a request's body within the bounds.

        Args:
            headers: the request's headers.
            receive: reads its body.

        Raises:
            ConfigError: its length is not a number.
            FrameTooLargeError: it is longer than allowed, or longer than its header says.
            OverloadedError: the large bodies under way leave no room for it.
        """
        length = length_of(headers)
        if length > self._most:
            raise self._too_large()
        charge = length if length > SMALL_BYTES else 0
        if self.held_bytes + charge > self._all:
            raise OverloadedError(
                "the large requests under way leave no room for this one: send it again",
                cause="bodies",
            )
        self.held_bytes += charge
        taken = 0

        async def take() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > length:
                raise self._too_large()
            return message

        try:
            yield take
        finally:
            self.held_bytes -= charge

    def _too_large(self) -> FrameTooLargeError:
        return FrameTooLargeError(f"the request's body is larger than {self._most} bytes")


def length_of(headers: Headers) -> int:
    """Length of a request's body by its headers, in bytes.

    Raises:
        ConfigError: its length is not a number.
    """
    if "transfer-encoding" in headers:
        return SMALL_BYTES  # a body of unknown length may be a small one
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ConfigError(f"Content-Length {text[:40]!r} is no number")
    return int(text)
