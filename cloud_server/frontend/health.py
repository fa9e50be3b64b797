"""Health of the service, for gRPC's health service, /readyz and a metric."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from grpc_health.v1 import health, health_pb2

from cloud_server.metrics import Metrics
from protos.calls import SERVICE


class Health:
    """Whether the service answers questions.

    Args:
        metrics: the service's metrics; sets `answering`.
        why_not: why the engines do not answer; empty if they do. Called on any thread.

    Attributes:
        checks: gRPC's health service.
        came_up: set once the service has answered for the first time.
    """

    def __init__(self, metrics: Metrics, why_not: Callable[[], str]) -> None:
        self._metrics, self._why_not = metrics, why_not
        self._leaving = False
        self._told: set[asyncio.Task[None]] = set()
        self.checks = health.aio.HealthServicer()
        self.came_up = asyncio.Event()

    def look(self) -> None:
        """Update all of them after a possible change."""
        good = not self._why_not()
        self._metrics.answering.set(good)
        if good:
            self.came_up.set()
        if not self._leaving:
            task = asyncio.get_running_loop().create_task(self._tell(good))
            self._told.add(task)
            task.add_done_callback(self._told.discard)

    async def leave(self) -> None:
        """Report from now on that the service stops."""
        self._leaving = True
        await self.checks.enter_graceful_shutdown()

    def not_ready(self) -> str:
        """Why the service is not ready; empty if it is. Called on any thread."""
        return "draining" if self._leaving else self._why_not()

    async def _tell(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self.checks.set(service, status.SERVING if serving else status.NOT_SERVING)
