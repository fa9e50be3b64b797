"""Before the first capture: terms to work by, and whether the settings fit them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from edge_agent.picture import PICTURE
from edge_agent.plan import AUTO, Plan, choose_point, highest_of, unknown_point
from edge_agent.uplink.caller_bar import BARRING
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.retry import Refused
from edge_agent.uplink.session import Session
from protos.errors import BridgeError, ConfigError, UnknownSessionError
from protos.process.logs import Logger

_HEAD_START_S = 3.0
"""With terms on the disk: how long the first capture waits for newer ones, seconds."""


@dataclass(frozen=True)
class Beginning:
    """How a run gets its first session.

    Attributes:
        uplink: the way to the server.
        plan: how frames are made.
        controller: chooses the operating point if the plan does not name one.
        log: structured logger.
        lasting: whether the source does not end: nobody is there to correct a setting, so a point
            that the service does not have is passed over.
    """

    uplink: Uplink
    plan: Plan
    controller: PointController | None
    log: Logger
    lasting: bool = False

    async def stay(self, stopped: asyncio.Event) -> bool:
        """Begin a run with a spool: by the last session's terms if there is no service now.

        Args:
            stopped: set if the run is not to begin any more.

        Returns:
            Whether there are terms to work by; if not, the run was stopped first.

        Raises:
            ConfigError: the settings do not fit them.
            BridgeError: there are no terms, and the server refuses to agree on any.
        """
        last = self.uplink.connection.latest
        if last is not None:
            self._check(last)
            await self._look_for_the_service()
            return True
        cause = "this device has not reached a service yet, so it has no encoder"
        self.log.warning("waiting_for_terms", cause=cause)
        connecting = asyncio.create_task(self.connect(None))
        waiting = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({connecting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
            return connecting.done()
        finally:
            connecting.cancel()
            waiting.cancel()

    async def _look_for_the_service(self) -> None:
        """Try once to connect, so that the first frames are made by the service's present terms."""
        try:
            await asyncio.wait_for(self._open(), _HEAD_START_S)
        except asyncio.TimeoutError:
            self.log.warning("offline_at_start", cause=f"no service within {_HEAD_START_S:g} s")
        except (BridgeError, Refused) as error:
            self.log.warning("offline_at_start", cause=str(error))

    async def _open(self) -> None:
        with contextlib.suppress(UnknownSessionError):
            await self.uplink.connection.open()
            return
        await self.uplink.connection.open()  # agrees on a new session

    async def connect(self, patience_s: float | None) -> None:
        """Agree on a session.

        Args:
            patience_s: after so long go on without one; None to insist.

        Raises:
            ConfigError: the settings do not fit it.
            BridgeError: the server's refusal, or OfflineError once the time for it is spent.
        """
        try:
            session = await asyncio.wait_for(self.uplink.connect(), patience_s)
        except (asyncio.TimeoutError, BridgeError) as error:
            passing = isinstance(error, (asyncio.TimeoutError, *BARRING)) or error.retryable
            if patience_s is None or not passing:
                raise
            self.log.warning("offline_at_start", cause=str(error) or f"{patience_s:g} s")
            return
        self._check(session)

    def _check(self, session: Session) -> None:
        unknown = unknown_point(self.plan.point, self.plan.highest_point, session.points)
        if unknown is not None and not self.lasting:
            raise unknown
        point = choose_point(self.plan, session)
        if point.kind != PICTURE:
            session.encoder.selecting(self.plan.selector)
        if session.encoder.text and (self.plan.delta or self.plan.selector is not None):
            what = "--delta" if self.plan.delta else "--selector"
            raise ConfigError(f"{what} is for pictures: texts travel whole")
        if self.controller is not None and self.plan.point == AUTO:
            highest = highest_of(self.plan, session)
            if unmet := self.controller.unmet(session.rungs, highest):
                self.log.warning("limits_unmet", cause=unmet)
        if self.plan.guard.acts() and not self.plan.guard.watches(session.encoder):
            self.log.warning(
                "no_guard", cause=f"bundle {session.bundle_id} was not calibrated for it"
            )
