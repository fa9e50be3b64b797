"""Attend: takes the service's orders as long as the agent runs, and reports what waits.

The call lives on the connection of the events, or on the frames' own if they share one. While
nothing happens it costs nothing. Without a connection for a while this opens one, after full-jitter
pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from edge_agent.device.crash import CrashReports
from edge_agent.metrics import Metrics
from edge_agent.remote.orders import Orders
from edge_agent.remote.report import crash_of, send
from edge_agent.remote.vitals import tell_vitals
from edge_agent.uplink.call_errors import error_of, unless_closed
from edge_agent.uplink.dial import SecureDial
from edge_agent.uplink.retry import Refused
from edge_agent.uplink.servers import address_of
from edge_agent.uplink.stream import Stream
from protos.errors import BridgeError, OfflineError, OverloadedError
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process.logs import Logger

_LOOK_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 900.0
_TOO_OLD_S = 6 * 3600.0
"""A service without Attend is asked again after about so long."""
_UNHEARD_S = 1800.0
"""Settings on trial with which the service is not reached for so long do not work."""
_CALL_S = 30.0


class Connected(Protocol):
    """What is needed of the connection."""

    @property
    def stream(self) -> Stream | None:
        """The stream opened last."""

    async def open(self) -> Stream:
        """The open stream; connects if there is none."""


@dataclass
class Attendance:
    """Takes the orders of one device.

    Attributes:
        connection: to the service.
        orders: carries them out.
        reports: crash reports; None: another agent has them.
        running: what this device runs, for the service.
        version: of the agent.
        metrics: what is counted.
        log: structured logger.
        vitals_every_s: pause between two reports of vitals, seconds; 0: none.
        sleep: waits that many seconds.
        clock: seconds, monotonic.
        pick: uniform between two numbers; for pauses.
    """

    connection: Connected
    orders: Orders
    reports: CrashReports | None
    running: Callable[[], list[bridge_pb2.Running]]
    version: str
    metrics: Metrics
    log: Logger
    vitals_every_s: float = 0.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    pick: Callable[[float, float], float] = random.uniform
    _failures: int = field(default=0, repr=False)
    _too_old: dict[str, float] = field(default_factory=dict, repr=False)

    async def run(self) -> None:
        """Attend until cancelled."""
        began, alone_s, wait_s = self.clock(), 0.0, self._pause_s()
        while True:
            if self.orders.remote.trial is not None and self.clock() - began > _UNHEARD_S:
                self.orders.give_up(
                    f"the service was not reached for {_UNHEARD_S / 60:.0f} minutes"
                )
            stream = self.connection.stream
            if stream is None or stream.broken is not None:
                if alone_s >= wait_s:
                    with contextlib.suppress(BridgeError, Refused):
                        await self.connection.open()
                    self._failures += 1
                    alone_s, wait_s = 0.0, self._pause_s()
                else:
                    alone_s += _LOOK_S
                    await self.sleep(_LOOK_S)
                continue
            alone_s = 0.0
            if not self._may(stream):
                await self.sleep(_LOOK_S)
                continue
            try:
                await self._attend(stream)
                self._failures = 0
                pause_s = self.pick(0.0, _FIRST_PAUSE_S)
            except BridgeError as error:
                self._failures += 1
                pause_s = self._pause_s()
                if isinstance(error, OverloadedError):
                    pause_s += min(error.retry_after_s, _LONGEST_PAUSE_S)
                self.log.info("not_attended", error=error.name, cause=str(error), pause_s=pause_s)
            await self.sleep(pause_s)

    def _may(self, stream: Stream) -> bool:
        """Whether orders are taken over a stream: only from the service that knows this device."""
        dial = stream.dial
        if not isinstance(dial, SecureDial) or dial.enrolled is None:
            return False
        return self.clock() >= self._too_old.get(address_of(dial), float("-inf"))

    def _pause_s(self) -> float:
        """Full jitter: uniform up to a bound that doubles."""
        most_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures, 16))
        return self.pick(0.0, most_s)

    async def _attend(self, stream: Stream) -> None:
        """One Attend call, until it ends.

        Raises:
            BridgeError: it failed.
        """
        channel = stream.channels[-1]
        request = bridge_pb2.AttendRequest(
            agent_version=self.version[:64],
            running=self.running(),
            settings=self.orders.remote.standing(),
            carried_out=self.orders.book.carried_out(),
        )
        call = bridge_pb2_grpc.BridgeStub(channel).Attend(request)
        woken = asyncio.Event()
        telling: list[asyncio.Task[None]] = []
        try:
            accepting = asyncio.ensure_future(call.initial_metadata())
            # `asyncio.wait_for` may swallow a cancellation that comes at the same moment.
            if not (await asyncio.wait({accepting}, timeout=_CALL_S))[0]:
                raise OfflineError(f"no word from the server within {_CALL_S:g} s")
            if call.done():
                await unless_closed(call.read())  # raises the status it ended with
                raise OfflineError("the server ended Attend at once")
            self._failures = 0
            self.metrics.attended.set(1)
            self.log.info("attended")
            self.orders.confirm()
            every_s = self.vitals_every_s
            telling = [
                asyncio.create_task(self._tell(channel, woken)),
                asyncio.create_task(
                    tell_vitals(channel, self.metrics, every_s, self.log, self.sleep, self.pick)
                ),
            ]
            while (order := await unless_closed(call.read())) is not grpc.aio.EOF:
                await self.orders.take(order, lambda body: send(channel, body))
                woken.set()
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED and stream.dial is not None:
                pause_s = self.pick(0.5, 1.5) * _TOO_OLD_S
                self._too_old[address_of(stream.dial)] = self.clock() + pause_s
                self.log.info("service_does_not_look_after_devices", again_s=round(pause_s))
                return
            raise error_of(error) from error
        finally:
            self.metrics.attended.set(0)
            call.cancel()
            for task in telling:
                task.cancel()
            if telling:
                await asyncio.wait(telling)

    async def _tell(self, channel: grpc.aio.Channel, woken: asyncio.Event) -> None:
        """Report what waits, and what comes, until cancelled."""
        failures = 0
        while True:
            woken.clear()
            try:
                await self._tell_all(channel)
                failures = 0
                await woken.wait()
            except BridgeError as error:
                failures += 1
                most_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 16))
                asked_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
                self.log.info("not_reported", error=error.name, cause=str(error))
                await self.sleep(min(asked_s, _LONGEST_PAUSE_S) + self.pick(0.0, most_s))

    async def _tell_all(self, channel: grpc.aio.Channel) -> None:
        for id, outcome in self.orders.book.untold():
            await self._tell_one(channel, bridge_pb2.ReportBody(outcome=outcome), "outcome")
            self.orders.book.told(id)
        if self.reports is None:
            return
        for path in self.reports.waiting():
            body = await crash_of(path)
            if body is not None:
                await self._tell_one(channel, body, "crash")
            self.reports.sent(path)

    async def _tell_one(
        self, channel: grpc.aio.Channel, body: bridge_pb2.ReportBody, kind: str
    ) -> None:
        """Send a report; one that the service will never take is given up."""
        try:
            await send(channel, body)
            self.metrics.reports_sent.labels(kind).inc()
        except BridgeError as error:
            if error.retryable:
                raise
            self.log.warning("report_refused", kind=kind, error=error.name, cause=str(error))
