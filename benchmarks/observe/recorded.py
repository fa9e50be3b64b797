"""Metrics as /metrics recorded them, beside those that the event log gives, after a load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from benchmarks.edge.figures import at_most, beside
from benchmarks.serve.identities import Identities
from benchmarks.serve.load import closed_loop, fleet
from benchmarks.serve.pool import Pool, pool
from benchmarks.serve.site import Site, stubbed
from cloud_server.recompute import compare, recompute

_DEVICES, _UNDER_WAY = 8, 64


def recorded(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns `figures`, and the sample that differs most."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "events.jsonl").absolute()
    log.unlink(missing_ok=True)
    frames, identities = pool(folder.parent), Identities.make(folder / "service", _DEVICES)
    with stubbed(folder, identities, event_log=str(log)) as place:
        asyncio.run(_load(place, frames, 2.0 if quick else 20.0))
        page = place.metrics()
    found = recompute([log])
    every = compare(page, found)
    worst = max(every, key=lambda one: one.ratio)
    return {
        "figures": [
            at_most("recorded metrics against the event log", 100 * worst.ratio, 1.0, "%"),
            beside("samples compared", len(every), "samples"),
            beside("events", found.events, "events"),
        ],
        "worst": worst._asdict(),
    }


async def _load(place: Site, frames: Pool, seconds: float) -> None:
    async with fleet(_DEVICES, place.dial, frames) as devices:
        await closed_loop(devices, len(frames.items), _UNDER_WAY, seconds)
