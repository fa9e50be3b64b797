"""Renews this device's certificate after two thirds of its life, without stopping the stream.

Each new connection uses the newest certificate. An open stream keeps the one that it began with.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from edge_agent.identity.enrol import renew
from edge_agent.identity.enrolled import Enrolled
from edge_agent.metrics import Metrics
from edge_agent.uplink.dial import Dial, explained
from protos.errors import (
    BridgeError,
    OfflineError,
    OverloadedError,
    UnauthenticatedError,
)
from protos.process.logs import Logger

_LOOK_S = 20.0
"""Seconds between checks of clock and file: clocks may jump, and the file may change."""
_STEP_S = 1.0
"""Seconds between looks at whether the server answers."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 3600.0


@dataclass
class Renewal:
    """Keeps one device's certificate valid.

    Attributes:
        enrolled: the identity.
        dial: makes a channel with the certificate.
        answers: whether the server answers, be it by refusing this device; renewal waits while it
            does not.
        metrics: counts renewals, and shows when the certificate expires.
        log: structured logger.
        timeout_s: longest wait for the service.
        sleep: waits that many seconds.
    """

    enrolled: Enrolled
    dial: Dial
    answers: Callable[[], bool]
    metrics: Metrics
    log: Logger
    timeout_s: float = 10.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _pause_s: float = field(default=0.0, repr=False)
    _not_before: float = field(default=float("-inf"), repr=False)
    _unreached: bool = field(default=False, repr=False)  # the newest failure: nobody answered

    async def run(self) -> None:
        """Renew the certificate whenever it is due, until cancelled."""
        answered = False
        while True:
            answers = self.answers()
            if answers and not answered and self._unreached:
                self._again()
            answered = answers
            if answers or self.late:
                await self.turn()
            await self._until_next(answers)

    async def _until_next(self, answers: bool) -> None:
        """Wait until the next check; while nobody answers, no longer than that lasts."""
        left_s = _LOOK_S if answers or self.late else _STEP_S
        step_s = left_s if answers else _STEP_S
        while left_s > 0 and (answers or not self.answers()):
            await self.sleep(step_s)
            left_s -= step_s

    def _again(self) -> None:
        """Forget the pause after a failure."""
        self._pause_s, self._not_before, self._unreached = 0.0, float("-inf"), False

    @property
    def due(self) -> bool:
        """Whether it is time to renew.

        If the clock is before the certificate's issue, the clock is wrong (usually in 1970) and the
        certificate's age is unknown. So it is renewed; the reply also brings the service's time.
        """
        identity, clock = self.enrolled.now, self.enrolled.clock
        return not identity.issued_s <= clock.now() < identity.renew_at_s

    @property
    def late(self) -> bool:
        """Whether the certificate has expired; services renew it for a year, or what they allow."""
        return self.enrolled.clock.now() >= self.enrolled.now.not_after_s

    async def before_connecting(self) -> None:
        """Renew first if the certificate may have expired: it can do nothing else.

        This device's clock may be in 1970, so that it cannot tell. A failure is not counted here.
        """
        identity, now = self.enrolled.now, self.enrolled.clock.now()
        if not identity.issued_s <= now < identity.not_after_s:
            await self.turn()
            self._again()

    async def turn(self) -> None:
        """Check once, and renew if due; a failure is logged and retried later."""
        steady = self.enrolled.clock.steady
        try:
            if self.enrolled.unsaved is not None:
                self._save()
            self.metrics.certificate_end.set(self.enrolled.now.not_after_s)
            if not self.due or steady() < self._not_before:
                return
            await self._renew()
        except BridgeError as error:
            self._unreached = isinstance(error, OfflineError)
            longest_s = _FIRST_PAUSE_S if self._unreached else _LONGEST_PAUSE_S
            self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), longest_s)
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
