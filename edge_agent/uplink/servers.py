"""Several servers in order of preference: which to try next, and when to go back to a better one.

A server that failed is left alone for a pause that doubles each time, so that two servers that come
and go are not tried in turns. Calls, in order: `order` → `failed` or `opened` for each one tried →
`broke` when its stream ends; `better` while a less preferred one carries the stream.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from edge_agent.uplink.dial import Dial, Located, explained
from protos.errors import BridgeError, ConfigError


@dataclass
class _Health:
    """What is known of one server.

    Attributes:
        since: when its stream was opened last, seconds.
        until: not tried before others until then, seconds.
        pause_s: length of the last such pause; 0 before the first.
        short: streams in a row that ended soon.
    """

    since: float = float("-inf")
    until: float = float("-inf")
    pause_s: float = 0.0
    short: int = 0


class Servers:
    """The servers of one service.

    Args:
        dials: one for each server, the preferred one first.
        back_s: first pause before a server that failed is preferred again, seconds. A stream that
            lives shorter than this counts as broken soon; two in a row are a failure.
        back_max_s: longest such pause, seconds.
        clock: seconds, monotonic.
        sleep: waits that many seconds.

    Attributes:
        current: the one whose stream was opened last; the preferred one before.

    Raises:
        ConfigError: there is none, or one is named twice.
    """

    def __init__(
        self,
        dials: Sequence[Dial],
        back_s: float = 30.0,
        back_max_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not dials:
            raise ConfigError("no server")
        named = [address_of(dial) for dial in dials if address_of(dial)]
        twice = next((name for name in named if named.count(name) > 1), "")
        if twice:
            raise ConfigError(f"server {twice} is named twice")
        self.dials = tuple(dials)
        self.current = self.dials[0]
        self._back_s, self._back_max_s = back_s, back_max_s
        self._clock, self._sleep = clock, sleep
        self._health = [_Health() for _ in self.dials]

    @classmethod
    def of(cls, dial: Dial | Servers) -> Servers:
        """The servers as given, or one server."""
        return dial if isinstance(dial, Servers) else cls([dial])

    def __call__(self) -> grpc.aio.Channel:
        """Make a channel to the server whose stream was opened last."""
        return self.current()

    def explained(self, error: BridgeError) -> BridgeError:
        """Add the probable cause to the error of a call on a channel of `__call__`."""
        return explained(self.current, error)

    @property
    def several(self) -> bool:
        """Whether there is a choice."""
        return len(self.dials) > 1

    def rank(self, dial: Dial) -> int:
        """Its place in the order of preference, from 0."""
        return self.dials.index(dial)

    def order(self) -> list[Dial]:
        """The servers in the order to try: the preferred first, those that failed lately last."""
        now = self._clock()
        left = {id(d): self._health[self.rank(d)].until for d in self.dials}
        return sorted(self.dials, key=lambda d: left[id(d)] if left[id(d)] > now else 0.0)

    def opened(self, dial: Dial) -> None:
        """A stream to it was opened."""
        self.current = dial
        self._of(dial).since = self._clock()

    def failed(self, dial: Dial) -> None:
        """It could not be reached, or would not serve."""
        health, now = self._of(dial), self._clock()
        steady = now - health.until > 2 * health.pause_s
        pause_s = self._back_s if steady else 2 * health.pause_s
        health.pause_s = min(max(self._back_s, pause_s), self._back_max_s)
        health.until = now + health.pause_s * random.uniform(0.8, 1.2)
        health.short = 0

    def broke(self, dial: Dial) -> None:
        """Its stream ended; a server that takes streams and breaks them soon has failed."""
        health = self._of(dial)
        soon = self._clock() - health.since < self._back_s
        health.short = health.short + 1 if soon else 0
        if health.short > 1:
            self.failed(dial)

    async def better(self, dial: Dial) -> Dial:
        """Wait until a server preferred to `dial` may be tried; return the most preferred one."""
        rank = self.rank(dial)
        while True:
            now = self._clock()
            for each, health in zip(self.dials[:rank], self._health[:rank], strict=True):
                if health.until <= now:
                    return each
            soonest = min(health.until for health in self._health[:rank])
            await self._sleep(soonest - now)

    def _of(self, dial: Dial) -> _Health:
        return self._health[self.rank(dial)]


def address_of(dial: Dial) -> str:
    """The address that a dial leads to; empty if it does not say."""
    return dial.address if isinstance(dial, Located) else ""
