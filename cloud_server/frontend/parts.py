"""The parts of the front end: what starts, drains and closes together."""

from __future__ import annotations

from typing import Protocol


class Part(Protocol):
    """One part, such as the gRPC port or the engines.

    The calls, in order: `start`, in the order of `Service`'s list; `drain`, of all parts at once,
    after health has said that the service leaves; `close`, in reverse order, even if `start` failed
    or was never called.
    """

    async def start(self) -> None:
        """Begin.

        Raises:
            ConfigError: a setting cannot be used, such as a port that is taken.
        """

    async def drain(self) -> None:
        """Take nothing new, and wait for what is under way, for `settings.drain_s` at most."""

    async def close(self) -> None:
        """Let go of everything."""
