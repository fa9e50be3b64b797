"""Puts together what takes the service's orders for one agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge_agent.agent import Agent
from edge_agent.device.reload import Reload
from edge_agent.device.upkeep import Upkeep
from edge_agent.metrics import Metrics
from edge_agent.remote.attend import Attendance
from edge_agent.remote.kept import RemoteSettings, short
from edge_agent.remote.order_book import OrderBook
from edge_agent.remote.orders import Orders
from edge_agent.settings import Settings
from edge_agent.stop_limit import end_soon
from edge_agent.update.boot import Slots
from edge_agent.update.health import running_slot
from edge_agent.uplink.connection import Connection
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.logs import Logger
from protos.process.settings import installed_version

_END_S = 60.0
"""Longest wait for what is in flight before a restart."""


def look_after(
    remote: RemoteSettings,
    agent: Agent,
    reload: Reload,
    upkeep: Upkeep,
    metrics: Metrics,
    log: Logger,
) -> Attendance | None:
    """What takes orders beside a run; None if another agent has the state directory.

    Args:
        remote: the service's settings.
        agent: the run.
        reload: changes its settings.
        upkeep: has its log and its crash reports.
        metrics: what is counted.
        log: structured logger.
    """
    if upkeep.reports is None:
        return None
    metrics.remote_revision.set(remote.revision)
    if remote.shown is not None:
        for name, error in remote.shown.refused.items():
            log.warning("remote_setting_refused", setting=name, cause=error.message)
    if remote.failed is not None:
        failed = remote.failed
        log.error("remote_settings_taken_back", revision=failed.revision, cause=failed.cause)
    orders = Orders(
        remote,
        OrderBook(remote.folder),
        reload,
        None if upkeep.ring is None else upkeep.ring.folder,
        _ending(agent, upkeep),
        agent.request_capture,
        metrics,
        log,
    )
    connection = agent.uplink.connection
    return Attendance(
        connection,
        orders,
        upkeep.reports,
        lambda: _running(reload.now, connection),
        installed_version(),
        metrics,
        log,
        vitals_every_s=reload.now.remote.vitals_every_s,
    )


def _ending(agent: Agent, upkeep: Upkeep) -> Callable[[], None]:
    """What ends the run, after a while also with requests in flight."""
    task = asyncio.current_task()

    def end() -> None:
        upkeep.stopping()
        end_soon("the service's order", 1.5 * _END_S)
        agent.stop()
        if task is not None:
            asyncio.get_running_loop().call_later(_END_S, task.cancel)

    return end


def _running(chosen: Settings, connection: Connection) -> list[bridge_pb2.Running]:
    """What this device runs."""
    slot = running_slot(Slots(chosen.slots))
    named = "" if slot is None else slot[0]
    found = [
        bridge_pb2.Running(
            kind="agent", name="edge-agent", version=installed_version()[:128], slot=named
        )
    ]
    if chosen.model is not None:
        found.append(
            bridge_pb2.Running(kind="model", name=short(chosen.model.name, 64), slot=named)
        )
    session = connection.latest
    if session is not None:
        found.append(
            bridge_pb2.Running(
                kind="bundle",
                name=short(session.bundle_id, 64),
                version=short(session.bundle_version, 64),
                sha256=short(session.bundle_digest, 64),
            )
        )
    return found
