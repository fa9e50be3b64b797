"""Report: takes crash reports, pieces of logs, vitals, and how orders ended."""

from __future__ import annotations

import asyncio
from typing import Any

from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.attend import messages
from cloud_server.frontend.attend.attendance import device_id_of, require_device
from cloud_server.frontend.attend.fleet import Fleet
from cloud_server.frontend.refuse import Refusals
from cloud_server.identity.caller import Caller
from cloud_server.metrics import Metrics
from cloud_server.state import device_reports, orders
from cloud_server.state.directory import LiveDirectory
from cloud_server.state.store import Store
from cloud_server.throttle import Buckets
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    MissingError,
    OverloadedError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger

CRASHES = ("exception", "fault", "killed", "power")
_PER_S, _BURST = 1 / 10, 64
"""How many reports of one device are taken."""


class ReportTaker:
    """The RPC Report.

    Args:
        store: the database; None on a service without one.
        live: the directory of devices; None without a database.
        gate: checks callers.
        quotas: counts requests against quotas.
        metrics: what is counted.
        refusals: where refusals are counted.
        log: a bound logger.
        fleet: is told the vitals.
    """

    def __init__(
        self,
        store: Store | None,
        live: LiveDirectory | None,
        gate: Gate,
        quotas: Quotas,
        metrics: Metrics,
        refusals: Refusals,
        log: Logger,
        fleet: Fleet,
    ) -> None:
        self._fleet = fleet
        self._store, self._live, self._gate, self._quotas = store, live, gate, quotas
        self._metrics, self._refusals, self._log = metrics, refusals, log
        self._often = Buckets(_PER_S, _BURST)

    async def report(self, raw: bytes, context: Any) -> pb.ReportResponse:
        """Take one report; one that comes again is answered like the first."""
        self._metrics.received_bytes.labels("report").inc(len(raw))
        try:
            caller = self._gate.device(context)
            require_device(caller)
            if self._store is None or self._live is None:
                raise EngineUnavailableError("the database is not open")
            self._quotas.charge(caller.tenant, caller.name, len(raw))
            if wait_s := self._often.take(f"{caller.tenant}/{caller.name}"):
                raise OverloadedError(
                    f"this device reports too often: again in {wait_s:.0f} s",
                    retry_after_s=wait_s,
                    cause="reports",
                )
            digest, raw_body, body = messages.report(raw)
            device_id = device_id_of(caller, self._live)
            kind = str(body.WhichOneof("report"))
            if kind == "vitals":  # in memory only
                self._fleet.said(device_id, body.vitals)
            else:
                kind = await asyncio.to_thread(
                    self._keep, self._store, caller, device_id, digest, raw_body, body
                )
        except BridgeError as error:
            await self._refusals.abort(context, error, "Report")
        self._metrics.reports.labels(kind).inc()
        if kind != "vitals":
            self._log.info("reported", tenant=caller.tenant, device=caller.name, kind=kind)
        return pb.ReportResponse()

    def _keep(
        self,
        store: Store,
        caller: Caller,
        device_id: str,
        digest: str,
        raw: bytes,
        body: pb.ReportBody,
    ) -> str:
        """Keep a report; returns its kind.

        Raises:
            MissingError: it is about an order that this device was not given.
            FrameMalformedError: its content is not what it should be.
        """
        kind = str(body.WhichOneof("report"))
        with store.write(f"device:{caller.tenant}/{caller.name}", quiet=True) as tx:
            if kind == "outcome":
                outcome = body.outcome
                refused = outcome.refused
                cause = outcome.done or f"{refused.code} {refused.name}: {refused.message}"
                done, id = outcome.HasField("done"), outcome.order_id.hex()
                orders.ended(tx, device_id, id, done, "" if done and not cause else cause)
                if outcome.HasField("settings"):
                    device_reports.settled(tx, device_id, outcome.settings)
                return "done" if done else "refused"
            if kind == "log":
                id = body.log.order_id.hex()
                if orders.kind_of(tx.session, device_id, id) != "send_logs":
                    raise MissingError("there is no such order for this device")
                device_reports.lines_of(body.log)
                device_reports.keep(tx, device_id, digest, "log", id, raw)
                return "log"
            device_reports.crash_of(body.crash)
            named = body.crash.kind if body.crash.kind in CRASHES else "other"
            device_reports.keep(tx, device_id, digest, named, "", raw)
            return "crash"
