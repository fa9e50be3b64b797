"""Ends a run at SIGINT and SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from edge_agent.agent import Agent
from edge_agent.remote.kept import RemoteSettings
from edge_agent.stop_limit import end_soon
from edge_agent.uplink.delivery import Uplink
from protos.process import logs

_GRACE_S = 10.0
"""How long frames in memory may take to end once the run is stopped, seconds."""


def stop_on_signals(
    agent: Agent,
    log: logs.Logger,
    on_stop: Callable[[], None],
    in_memory: Uplink | None,
    remote: RemoteSettings | None,
) -> None:
    """The first SIGINT or SIGTERM ends the run within `stop_limit`; the second ends it now.

    Frames that wait in memory have `_GRACE_S` to end; then they end with an error.

    Args:
        agent: the run.
        log: structured logger.
        on_stop: called at the first signal.
        in_memory: the uplink of frames that wait in memory; None if they wait on the disk.
        remote: the service's settings; a signal takes an ordered restart back.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    closing: list[asyncio.Task[None]] = []

    def close(uplink: Uplink) -> None:
        closing.append(loop.create_task(uplink.close()))

    def asked(number: signal.Signals) -> None:
        log.warning("stopping", signal=number.name)
        end_soon(number.name)
        if in_memory is not None:
            loop.call_later(_GRACE_S, close, in_memory)
        on_stop()
        if remote is not None:
            remote.wants_restart = False
        agent.stop()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
        if number is signal.SIGTERM and task is not None:
            loop.add_signal_handler(signal.SIGTERM, task.cancel)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, asked, each)
