"""Attend: devices wait for orders; each order goes to its device at whichever front end it is.

An order is given in the database, by any front end or a command. Each front end asks the database
every few seconds whether one was given (`orders.token`), and only then which.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.attend.fleet import Fleet
from cloud_server.frontend.attend.messages import attend_request
from cloud_server.frontend.refuse import Refusals
from cloud_server.identity.caller import Caller
from cloud_server.metrics import Metrics
from cloud_server.state import device_reports, device_settings, orders
from cloud_server.state.directory import LiveDirectory
from cloud_server.state.store import Store
from cloud_server.throttle import Buckets, Throttle
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    ForbiddenError,
    OverloadedError,
    UnauthenticatedError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger

_LOOK_S = 2.0
"""Pause between two looks for new orders."""
_EXPIRE_S = 300.0
"""Orders are looked up at least so often, in case a look was missed."""
_PER_S, _BURST = 1 / 20, 10
"""How often one device may begin to attend."""


@dataclass(eq=False)
class _Attending:
    """A device whose Attend call is open here.

    Attributes:
        known: ids of orders that it has had in this call, or has carried out.
        ready: messages that go down next, by order id.
        woken: set when there is something to do.
        ended: whether its call ends now.
    """

    device_id: str
    known: set[str]
    ready: dict[str, bytes] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def offer(self, waiting: dict[str, bytes]) -> None:
        """Send those of these orders that it has not had."""
        for id, body in waiting.items():
            if id not in self.known:
                self.known.add(id)
                self.ready[id] = body
                self.woken.set()

    def end(self) -> None:
        self.ended = True
        self.woken.set()


def device_id_of(caller: Caller, live: LiveDirectory) -> str:
    """The id of the calling device.

    Raises:
        UnauthenticatedError: it is gone.
    """
    device = live.now.device(caller.tenant, caller.name)
    if device is None:
        raise UnauthenticatedError("this device was removed")
    return device.id


def require_device(caller: Caller) -> None:
    """Check that a caller is a device with a certificate.

    Raises:
        ForbiddenError: the service has no identities.
    """
    if caller.kind != "device":
        raise ForbiddenError(
            "a service without identities gives no orders and takes no reports: whoever reaches it "
            "could be any device (cloud-server init makes identities)"
        )


class Attendance:
    """The RPC Attend.

    Args:
        store: the database; None on a service without one.
        live: the directory of devices; None without a database.
        gate: checks callers.
        metrics: what is counted.
        refusals: where refusals are counted.
        log: a bound logger.
        few: lets the first log lines of a kind pass.
        front_end: this front end's name.
        fleet: is told which devices are here.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store | None,
        live: LiveDirectory | None,
        gate: Gate,
        metrics: Metrics,
        refusals: Refusals,
        log: Logger,
        few: Throttle,
        front_end: str,
        fleet: Fleet,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._live, self._gate = store, live, gate
        self._metrics, self._refusals, self._log, self._few = metrics, refusals, log, few
        self._front_end, self._fleet, self._clock = front_end[:128], fleet, clock
        self._often = Buckets(_PER_S, _BURST)
        self._attending: dict[str, _Attending] = {}
        self._leaving = False
        self._look_now = asyncio.Event()

    async def attend(self, raw: bytes, context: Any) -> None:
        """Send a device its orders until the call ends."""
        self._metrics.received_bytes.labels("attend").inc(len(raw))
        try:
            caller = self._gate.device(context)
            require_device(caller)
            store = self._store
            if store is None or self._live is None:
                raise EngineUnavailableError("the database is not open")
            if self._leaving:
                raise EngineUnavailableError("the service stops: attend again")
            if wait_s := self._often.take(f"{caller.tenant}/{caller.name}"):
                raise OverloadedError(
                    f"this device attends too often: again in {wait_s:.0f} s",
                    retry_after_s=wait_s,
                    cause="attend",
                )
            request = attend_request(raw)
            device_id = device_id_of(caller, self._live)
        except BridgeError as error:
            await self._refusals.abort(context, error, "Attend")
        mine = _Attending(device_id, {id.hex() for id in request.carried_out})
        if older := self._attending.get(device_id):
            older.end()
        self._attending[device_id] = mine  # before the first look: no order falls between the two
        self._fleet.came(device_id, caller.tenant, caller.name, request.agent_version)
        try:
            await self._serve(store, mine, caller, request, context)
        finally:
            if self._attending.get(device_id) is mine:
                del self._attending[device_id]
                self._fleet.left(device_id)
                self._note_end(store, device_id)

    async def _serve(
        self,
        store: Store,
        mine: _Attending,
        caller: Caller,
        request: pb.AttendRequest,
        context: Any,
    ) -> None:
        try:
            waiting = await asyncio.to_thread(self._begin, store, mine.device_id, request)
        except BridgeError as error:
            await self._refusals.abort(context, error, "Attend")
        mine.offer(waiting)
        await context.send_initial_metadata(())
        self._log.info("device_attends", tenant=caller.tenant, device=caller.name)
        await self._send(store, mine, caller, context)

    async def _send(self, store: Store, mine: _Attending, caller: Caller, context: Any) -> None:
        while True:
            await mine.woken.wait()
            mine.woken.clear()
            ready, mine.ready = mine.ready, {}
            for id, body in ready.items():
                order = pb.Order.FromString(body)
                kind = str(order.WhichOneof("order"))
                await context.write(order)
                self._metrics.orders_sent.labels(kind).inc()
                self._log.info(
                    "order_sent", tenant=caller.tenant, device=caller.name, order=id, kind=kind
                )
            if ready:
                await self._note_sent(store, list(ready))
            if mine.ended:
                return

    async def run(self) -> None:
        """Look for orders until cancelled; no error of the database ends this."""
        token, looked_s = "", self._clock()
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), _LOOK_S)
            self._look_now.clear()
            if self._store is None or not self._attending:
                continue
            now_s = self._clock()
            seen = "" if now_s - looked_s > _EXPIRE_S else token
            try:
                token, found = await asyncio.to_thread(
                    self._look, self._store, seen, list(self._attending)
                )
            except BridgeError as error:
                if self._few.passes("orders"):
                    self._log.warning("orders_not_looked_up", cause=error.message)
                continue
            looked_s = now_s if not seen else looked_s
            for device_id, waiting in found.items():
                if mine := self._attending.get(device_id):
                    mine.offer(waiting)

    def look(self) -> None:
        """Look for new orders at once; call it on the event loop."""
        self._look_now.set()

    def leave(self) -> None:
        """End every call: the service stops."""
        self._leaving = True
        for mine in self._attending.values():
            mine.end()

    def _look(
        self, store: Store, seen: str, device_ids: list[str]
    ) -> tuple[str, dict[str, dict[str, bytes]]]:
        with store.read() as session:
            token = orders.token(session)
            if token == seen:
                return token, {}
            return token, orders.waiting(session, device_ids, self._clock())

    def _begin(self, store: Store, device_id: str, request: pb.AttendRequest) -> dict[str, bytes]:
        with store.write(f"front-end:{self._front_end}", quiet=True) as tx:
            device_reports.attends(tx, device_id, self._front_end, request)
            device_settings.remind(tx, device_id, request.settings.tried)
            return orders.waiting(tx.session, [device_id], tx.now_s).get(device_id, {})

    async def _note_sent(self, store: Store, ids: list[str]) -> None:
        with contextlib.suppress(BridgeError):  # it is only shown
            await asyncio.to_thread(self._sent, store, ids)

    def _sent(self, store: Store, ids: list[str]) -> None:
        with store.write(f"front-end:{self._front_end}", quiet=True) as tx:
            orders.sent(tx, ids)

    def _note_end(self, store: Store, device_id: str) -> None:
        """Note that a device attends no more; nothing waits for that."""

        def note() -> None:
            with (
                contextlib.suppress(BridgeError),
                store.write(f"front-end:{self._front_end}", quiet=True) as tx,
            ):
                device_reports.leaves(tx, device_id, self._front_end)

        with contextlib.suppress(RuntimeError):  # the loop ends
            asyncio.get_running_loop().run_in_executor(None, note)
