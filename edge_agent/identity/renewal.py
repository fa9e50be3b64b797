"""Renews this device's certificate at two thirds of its life, while frames go on travelling.

Each new connection shows the newest certificate. The running stream keeps the one that it was
opened with.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from edge_agent.identity.enrol import renew
from edge_agent.identity.enrolled import Enrolled
from edge_agent.metrics import Metrics
from edge_agent.uplink.dial import SecureDial, explained
from protos.errors import (
    BridgeError,
    OfflineError,
    OverloadedError,
    UnauthenticatedError,
)
from protos.process.logs import Logger

_LOOK_S = 20.0
"""Seconds from one look at the clock to the next: clocks jump, and files change."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 3600.0


@dataclass
class Renewal:
    """Keeps one device's certificate valid.

    Attributes:
        enrolled: the identity.
        dial: makes a channel that shows it.
        connected: whether the server can be reached; nothing is tried while it cannot.
        metrics: counts renewals, and shows when the certificate ends.
        log: structured logger.
        timeout_s: longest wait for the service.
        sleep: waits that many seconds.
    """

    enrolled: Enrolled
    dial: SecureDial
    connected: Callable[[], bool]
    metrics: Metrics
    log: Logger
    timeout_s: float = 10.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _pause_s: float = field(default=0.0, repr=False)
    _not_before: float = field(default=float("-inf"), repr=False)

    async def run(self) -> None:
        """Renew whenever it is time, until cancelled."""
        while True:
            there = self.connected()
            if there:
                await self.turn()
            await self.sleep(_LOOK_S if there else 1.0)

    @property
    def due(self) -> bool:
        """Whether it is time for the next certificate.

        A clock before the moment at which the certificate was made is wrong (1970, as a rule): the
        age of the certificate is not known, so it is renewed, and with it comes the time.
        """
        identity, clock = self.enrolled.now, self.enrolled.clock
        return not identity.issued_s <= clock.now() < identity.renew_at_s

    async def turn(self) -> None:
        """Look once, and renew if it is time; failures are told and tried again later."""
        steady = self.enrolled.clock.steady
        try:
            if self.enrolled.unsaved is not None:
                self._save()
            self.metrics.certificate_end.set(self.enrolled.now.not_after_s)
            if not self.due or steady() < self._not_before:
                return
            await self._renew()
        except BridgeError as error:
            self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
            asked_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
            pause_s = self._pause_s * random.uniform(0.5, 1.0)
            self._not_before = steady() + max(pause_s, min(asked_s, _LONGEST_PAUSE_S))
            self.metrics.renewal_failures.labels(error.name).inc()
            self.log.warning("not_renewed", error=error.name, cause=str(error))

    async def _renew(self) -> None:
        present = self.enrolled.now
        async with self.dial() as channel:
            try:
                identity, refused = await renew(channel, present, self.timeout_s)
            except (OfflineError, UnauthenticatedError) as error:
                raise explained(self.dial, error) from error
        self.enrolled.clock.heard(identity.issued_s)
        if self.enrolled.now != present:
            return  # the device was enrolled again meanwhile
        self.enrolled.replace(identity)
        self._pause_s = 0.0
        self.metrics.renewals.inc()
        self.metrics.certificate_end.set(identity.not_after_s)
        self.log.info("renewed", serial=identity.serial, not_after_s=identity.not_after_s)
        if refused:
            self.log.error("roots_refused", roots=refused)
        if self.enrolled.unsaved is not None:
            raise self.enrolled.unsaved

    def _save(self) -> None:
        self.enrolled.replace(self.enrolled.now)
        if self.enrolled.unsaved is not None:
            raise self.enrolled.unsaved
