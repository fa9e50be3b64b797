"""What telemetry costs at full load: everything on, against counters, histograms and all else off.

The engine answers at once, so the front end is the limit; with a real engine the share is smaller.
On: metrics, 1,000 devices one by one, OpenTelemetry's names, the event log, traces to a collector
(1 % of requests), a scrape each second. The arms take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.edge.figures import at_most, beside
from benchmarks.serve.identities import Identities
from benchmarks.serve.load import fleet, pump
from benchmarks.serve.pool import Pool, pool
from benchmarks.serve.site import Site, cpu_seconds, stubbed

_PUMPS, _PUMPED, _MOST_PER_S = 4, 16, 3000


def cost(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns `figures`, and each turn's rates."""
    folder.mkdir(parents=True, exist_ok=True)
    frames, identities = pool(folder.parent), Identities.make(folder / "service", _PUMPS)
    seconds, turns = (2.0, 1) if quick else (8.0, 4)
    rows: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    log = (folder / "events.jsonl").absolute()
    for turn in range(turns):
        for arm in ("on", "off") if turn % 2 else ("off", "on"):
            log.unlink(missing_ok=True)
            with _collector() as endpoint:
                told: dict[str, Any] = {}
                if arm == "on":
                    told = {
                        "device_series": 1000,
                        "genai_metrics": True,
                        "event_log": str(log),
                        "otlp_endpoint": endpoint,
                    }
                module = "benchmarks.serve.stub_engine" if told else "benchmarks.observe.uncounted"
                with stubbed(folder, identities, module=module, **told) as place:
                    rows[arm].append(asyncio.run(_drive(place, frames, seconds, bool(told))))
    lost = {
        key: 100 * (1 - _middle(rows["on"], key) / _middle(rows["off"], key))
        for key in ("per_s", "per_cpu_s")
    }
    return {
        "figures": [
            at_most("all telemetry at full load: throughput lost", lost["per_s"], 3.0, "%"),
            beside(
                "all telemetry at full load: requests per CPU second lost", lost["per_cpu_s"], "%"
            ),
        ],
        "rows": rows,
    }


def _middle(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


async def _drive(place: Site, frames: Pool, seconds: float, scraped: bool) -> dict[str, float]:
    """Pump sealed requests, and scrape each second."""
    async with fleet(_PUMPS, place.dial, frames) as them:
        most, items = int(seconds * _MOST_PER_S / _PUMPS), len(frames.items)
        sealed = [
            [device.sealed(device.prepare(n % items)) for n in range(most)] for device in them
        ]
        events = await _events_of(them[0], sealed[0].pop())
        scraping = asyncio.create_task(_scrape(place)) if scraped else None
        pid, began = place.server.pid, time.monotonic()
        before_s, stop = cpu_seconds(pid), began + seconds
        pumps = (
            pump(device, device.raw_call(), raws, _PUMPED, events, stop)
            for device, raws in zip(them, sealed, strict=True)
        )
        done = sum(await asyncio.wait_for(asyncio.gather(*pumps), seconds + 60))
        used, wall = cpu_seconds(pid) - before_s, time.monotonic() - began
        if scraping is not None:
            scraping.cancel()
    return {"per_s": done / wall, "per_cpu_s": done / used}


async def _events_of(device: Any, raw: bytes) -> int:
    """How many messages one request gets."""
    call, events = device.raw_call(), 0
    await call.write(raw)
    await call.done_writing()
    async for _ in call:
        events += 1
    return events


async def _scrape(place: Site) -> None:
    while True:
        await asyncio.to_thread(place.metrics)
        await asyncio.sleep(1.0)


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """Takes spans and throws them away; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
