"""A scrape of /metrics with 1,000 devices one by one: from the request to its last byte."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.edge.figures import at_most, beside, percentile
from cloud_server.frontend.device_series import DeviceSeries
from cloud_server.metrics import Metrics
from protos.process.health import HealthServer

DEVICES = 1000
_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def scrape(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns `figures`, and the measurements behind them."""
    metrics = Metrics()
    series = DeviceSeries(metrics, DEVICES)
    for number in range(DEVICES):
        device = f"tenant-{number % 10}", f"device-{number:04d}"
        for _ in range(3):
            series.received(device, 33)
        series.answered(device, 0.1)
    server = HealthServer(metrics.registry, str)
    headers = {"Accept": _OPENMETRICS, "Accept-Encoding": "gzip"}
    asked = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers=headers)
    taken, cpu, size = [], [], 0
    try:
        for _ in range(10 if quick else 100):
            began, used = time.perf_counter(), time.process_time()
            with urllib.request.urlopen(asked, timeout=30) as page:
                size = len(page.read())
            taken.append(1e3 * (time.perf_counter() - began))
            cpu.append(1e3 * (time.process_time() - used))
    finally:
        server.close()
    return {
        "figures": [
            at_most("scrape with 1,000 devices: p95", percentile(taken, 0.95), 50.0, "ms"),
            beside("scrape with 1,000 devices: CPU time, median", percentile(cpu, 0.5), "ms"),
        ],
        "milliseconds": [round(one, 2) for one in taken],
        "bytes_gzipped": size,
    }
