"""The interface of the front end's parts: start, drain, close."""

from __future__ import annotations

from typing import Protocol


class Part(Protocol):
    """One part, such as the gRPC port or the engines.

    The calls in order: `start` in the order of `Service`'s list; `drain` for all parts at once,
    after health reports that the service stops; `close` in reverse order, even if `start` failed
    or was never called.
    """

    async def start(self) -> None:
        """Begin.

        Raises:
            ConfigError: a setting cannot be used, such as a port that is taken.
        """

    async def drain(self) -> None:
        """Refuse new work, and wait at most `settings.drain_s` for work under way."""

    async def close(self) -> None:
        """Free all resources."""
