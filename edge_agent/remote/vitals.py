"""Vitals: how this device is, for the service, which shows them to people and raises alerts.

They go up every few minutes, and when heat begins or ends to slow the device down.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable

import grpc

from edge_agent.metrics import Metrics
from edge_agent.remote.report import send
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.logs import Logger

_LOOK_S = 15.0
"""Pause between two looks whether heat slows the device down."""
_READ = {
    "spool_frames": "spool_frames",
    "spool_bytes": "spool_bytes",
    "spool_oldest_age_seconds": "spool_oldest_age_s",
    "temperature_celsius": "temperature_celsius",
    "power_watts": "power_watts",
    "throttled": "throttled",
    "certificate_end_timestamp_seconds": "certificate_end_s",
}
"""Field of the message by metric."""
_WHOLE = ("spool_frames", "spool_bytes")


def vitals_of(metrics: Metrics) -> bridge_pb2.Vitals:
    """The vitals, as the metrics say; what is not measured is left out."""
    found = bridge_pb2.Vitals()
    wanted = metrics.registry.restricted_registry([metrics.prefix + name for name in _READ])
    for family in wanted.collect():
        for sample in family.samples:
            field = _READ[sample.name.removeprefix(metrics.prefix)]
            if not math.isfinite(sample.value):
                continue
            if field == "throttled":
                found.throttled = sample.value > 0.0
            else:
                setattr(found, field, int(sample.value) if field in _WHOLE else sample.value)
    return found


async def tell_vitals(
    channel: grpc.aio.Channel,
    metrics: Metrics,
    every_s: float,
    log: Logger,
    sleep: Callable[[float], Awaitable[None]],
    pick: Callable[[float, float], float] = random.uniform,
) -> None:
    """Report vitals until cancelled, or until the service does not take them.

    Args:
        channel: to the service.
        metrics: says how the device is.
        every_s: pause between two reports, seconds; 0 reports none.
        log: structured logger.
        sleep: waits that many seconds.
        pick: uniform between two numbers; devices that connect together do not report together.
    """
    if not every_s:
        return
    wait_s = pick(0.0, min(_LOOK_S, every_s))
    while True:
        await sleep(wait_s)
        vitals = vitals_of(metrics)
        try:
            await send(channel, bridge_pb2.ReportBody(vitals=vitals))
            metrics.reports_sent.labels("vitals").inc()
        except BridgeError as error:
            if not error.retryable:  # an older service
                log.info("vitals_not_taken", error=error.name, cause=str(error))
                return
        due_s, wait_s = pick(0.9, 1.1) * every_s, 0.0
        while due_s > 0.0 and vitals_of(metrics).throttled == vitals.throttled:
            pause_s = min(_LOOK_S, due_s)
            await sleep(pause_s)
            due_s -= pause_s
