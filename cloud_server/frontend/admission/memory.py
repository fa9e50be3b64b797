"""Counts the bytes of each tenant in each store of the front end, for bounds and /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from cloud_server.metrics import Metrics


class Room:
    """Bytes of each tenant in one store."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self.total = 0

    def of(self, tenant: str) -> int:
        """Bytes of a tenant."""
        return self._of.get(tenant, 0)

    def add(self, tenant: str, size: int) -> None:
        """Add bytes to a tenant's count; a negative size frees them."""
        self.total += size
        held = self._of.get(tenant, 0) + size
        if held:
            self._of[tenant] = held
        else:
            self._of.pop(tenant, None)

    def tenants(self) -> dict[str, int]:
        """A copy of the bytes by tenant; any thread may call it."""
        return self._of.copy()


class Memory:
    """The stores by name; the metric `held_memory_bytes`."""

    def __init__(self, metrics: Metrics) -> None:
        self._rooms: dict[str, Room] = {}
        metrics.held_memory.read_from(self._samples)

    def room(self, name: str) -> Room:
        """The store of that name, made on the first call."""
        return self._rooms.setdefault(name, Room())

    def _samples(self) -> Iterator[tuple[tuple[str, str], float]]:
        """Store and tenant with their bytes; called in the thread of the metrics port."""
        for name, room in self._rooms.copy().items():
            for tenant, size in room.tenants().items():
                yield (name, tenant), size
