"""The parts of the benchmark: each measures a running service and returns plain numbers."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.asking import Asker, completions
from benchmarks.serve.device import MAX_NEW_TOKENS, Device
from benchmarks.serve.echo import Recording
from benchmarks.serve.identities import Identities
from benchmarks.serve.ledger import Entry, judge
from benchmarks.serve.load import (
    Poisson,
    Stretch,
    calm_answers,
    closed_loop,
    fleet,
    pump,
    sampled,
)
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site, cpu_seconds, site, stubbed
from cloud_server.frontend.access.ports import server_options
from cloud_server.settings import load
from reference.demo.halves import ENVIRONMENT, Ready
from reference.demo.processes import Child

DEVICES = (1, 4, 16, 64, 256, 1000)
OFFERED = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Offered loads, as shares of the throughput with 64 requests under way."""
WITHIN_S = 2.0
"""Seconds from due within which an answer counts as goodput."""
EACH_CORE = ("--engines", str(len(os.sched_getaffinity(0))))
"""Flags of a service with an engine of one thread for each core."""
IMPATIENT = ("--queue-s", str(WITHIN_S / 2))
"""Flags of a service that must keep to `WITHIN_S`."""
_GREEDY, _GREEDY_IN_FLIGHT = 8, 64
"""The greedy device's number, and the requests that it keeps under way."""
_WARM = 10
_PUMPS, _PUMPED, _MOST_PER_S = 4, 16, 8000
"""Connections to the front end alone, requests under way on each, most requests a second."""
_POLITE, _POLITE_SHARE = 8, 0.3


@dataclass(frozen=True)
class Workbench:
    """Shared by all parts.

    Attributes:
        folder: folder for logs and recordings.
        pool: the frames that devices send.
        quick: whether each point takes only a few seconds.
        identities: the service's directory and its devices.
        loop: runs all parts, because grpc.aio works only with the loop that it began with.
    """

    folder: Path
    pool: Pool
    quick: bool
    identities: Identities
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def seconds(self) -> float:
        """Length of one point."""
        return 2.0 if self.quick else 8.0


Part = Callable[[Workbench, dict[str, Any]], dict[str, Any]]
"""Measures one part; gets the earlier parts' results by name."""


def on_site(
    work: Callable[[Workbench, Site, dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]],
    *flags: str,
) -> Part:
    """Make a part that needs its own service."""

    def part(bench: Workbench, before: dict[str, Any]) -> dict[str, Any]:
        with site(bench.folder, bench.identities, *flags) as place:
            return bench.loop.run_until_complete(work(bench, place, before))

    return part


# ------------------------------------------------------------------ throughput and latency


async def throughput(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
    """Throughput with one and with 64 requests under way; stages of the time to first token."""
    items = len(bench.pool.items)
    found, entries, calm = await _one_and_many(bench, place)
    rate = 0.1 * found["one"]["answers_per_s"]
    async with fleet(64, place.dial, bench.pool) as devices:
        light = await Poisson(devices, items, rate, 4 * bench.seconds, seed=1).run()
    verdict = judge([*entries, *light.entries], calm)
    return found | {
        "light": light.row(),
        "stages": stages(light),
        "verdict": str(verdict),
        "holds": verdict.holds,
    }


async def all_cores(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
    """Throughput with one and with 64 requests under way, with an engine for each core."""
    found, entries, calm = await _one_and_many(bench, place)
    verdict = judge(entries, calm)
    return found | {"verdict": str(verdict), "holds": verdict.holds}


async def _one_and_many(
    bench: Workbench, place: Site
) -> tuple[dict[str, Any], list[Entry], list[str]]:
    """The rows of both, all their requests, and the answer to each item."""
    items = len(bench.pool.items)
    async with fleet(1, place.dial, bench.pool, whole=True) as (device,):
        calm = await calm_answers(device, items)
        right = sum(text == item.truth for text, item in zip(calm, bench.pool.items, strict=True))
        one = await closed_loop([device], items, 1, bench.seconds)
    async with fleet(64, place.dial, bench.pool, whole=True) as devices:
        many = await closed_loop(devices, items, 64, bench.seconds)
    found = {"right": right / items, "one": one.row(), "many": many.row()}
    return found, [*one.entries, *many.entries], calm


def stages(stretch: Stretch) -> dict[str, float]:
    """Where the time to the first token went: medians in milliseconds, and the share outside.

    The time runs from a device's write until its first token, over TLS. By the service's own
    timings, codec is the payload's decoding, projection is the map and the copy into the scene's
    pages, model is the question's prefill with the first token. All else is outside: the device,
    TLS, the front end, the way to the engine and back, waiting.
    """
    rows = [
        (
            (entry.first_token - entry.sent[0]) * 1e3,
            timings.decode_ms,
            timings.project_ms + timings.inject_ms,
            timings.prefill_ms,
            timings.queue_ms,
        )
        for entry in stretch.answered
        if (timings := entry.timings) is not None
    ]
    outside = [1 - (codec + map_ + model) / first for first, codec, map_, model, _ in rows]
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    names = ("first_token_ms", "codec_ms", "projection_ms", "model_ms", "queue_ms")
    return dict(zip(names, medians, strict=True)) | {"outside_share": statistics.median(outside)}


async def offered(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
    """Throughput, latency and goodput against offered load, Poisson arrivals on 64 devices."""
    peak = before["throughput"]["many"]["answers_per_s"]
    items, rows, entries = len(bench.pool.items), [], list[Entry]()
    async with (
        fleet(64, place.dial, bench.pool) as devices,
        sampled(place.memory) as memory,
    ):
        for number, share in enumerate(OFFERED):
            load_ = Poisson(devices, items, share * peak, bench.seconds, number, WITHIN_S)
            stretch = await load_.run()
            entries += stretch.entries
            rows.append({"share": share, "goodput_per_s": stretch.rate(WITHIN_S), **stretch.row()})
    verdict = judge(entries)
    return {"rows": rows, "memory": memory, "verdict": str(verdict), "holds": verdict.holds}


async def devices(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
    """Throughput against the number of devices, each with one request under way."""
    items, rows = len(bench.pool.items), []
    for count in DEVICES:
        began = time.monotonic()
        async with fleet(count, place.dial, bench.pool) as them:
            connected = time.monotonic() - began
            stretch = await closed_loop(
                them, items, count, bench.seconds, warm_s=max(1.0, count / 250)
            )
            row = {"devices": count, "connect_s": round(connected, 2), **stretch.row()}
            rows.append(row | {"memory": place.memory()})
    return {"rows": rows}


async def fairness(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
    """Latency of eight polite devices, alone and beside a greedy one, in turn."""
    items = len(bench.pool.items)
    rate = _POLITE_SHARE * before["throughput"]["many"]["answers_per_s"]
    alone, beside, greedy_rates = list[Entry](), list[Entry](), list[float]()
    async with (
        fleet(_POLITE, place.dial, bench.pool) as polite,
        fleet(4, lambda _: place.dial(_GREEDY), bench.pool, name="greedy") as greedy,
    ):
        for turn in range(2 if bench.quick else 4):
            quiet = await Poisson(polite, items, rate, bench.seconds, 2 * turn).run()
            alone += quiet.entries
            loud = asyncio.create_task(
                closed_loop(greedy, items, _GREEDY_IN_FLIGHT, bench.seconds + 2.0)
            )
            await asyncio.sleep(1.0)
            beside += (
                await Poisson(polite, items, rate, bench.seconds, 2 * turn + 1).run()
            ).entries
            greedy_rates.append((await loud).rate())
    seconds = bench.seconds * len(greedy_rates)
    rows = {"alone": Stretch(seconds, rate, alone), "beside": Stretch(seconds, rate, beside)}
    return {
        "rows": {name: stretch.row() for name, stretch in rows.items()},
        "p95_ratio": rows["beside"].latency_ms(0.95) / rows["alone"].latency_ms(0.95),
        "greedy_per_s": float(np.mean(greedy_rates)),
    }


async def http(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
    """The HTTP API against gRPC's Ask: the same questions about the same held scene, in turn."""
    questions = sorted({item.question for item in bench.pool.items})
    times: dict[str, list[float]] = {"grpc": [], "http": []}
    async with fleet(1, place.dial, bench.pool) as (device,):
        await device.send(held := device.prepare(0))
        await device.settle(60)
        if not held.answered:
            raise RuntimeError(f"the scene was refused: {held.cause}")
        asker = Asker(place.dial(0)(), device.reply, MAX_NEW_TOKENS)
        async with completions(place, device.name) as complete:
            for number in range(40 if bench.quick else 400):
                question = questions[number % len(questions)]
                began = time.perf_counter()
                by_grpc = await asker.ask(question)
                between = time.perf_counter()
                by_http = await complete(question, MAX_NEW_TOKENS)
                ended = time.perf_counter()
                if by_grpc != by_http:
                    raise RuntimeError(f"{question!r}: {by_grpc!r} by gRPC, {by_http!r} by HTTP")
                if number >= _WARM:
                    times["grpc"].append((between - began) * 1e3)
                    times["http"].append((ended - between) * 1e3)
        await asker.close()
    p50 = {name: statistics.median(found) for name, found in times.items()}
    return {"p50_ms": p50, "cost_share": p50["http"] / p50["grpc"] - 1, "asked": len(times["http"])}


# ------------------------------------------------------------------ rivals


def transformers(bench: Workbench, before: dict[str, Any]) -> dict[str, Any]:
    """Rival: the large model in `transformers` answers WebP pictures, one at a time.

    The fastest of one and two threads, in float32 and in bfloat16, counts.
    """
    found: list[dict[str, Any]] = []
    for threads, dtype in product((1, 2), ("float32", "bfloat16")):
        run = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.serve.rival"),
                *(str(bench.seconds), str(threads), dtype),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        made = json.loads(run.stdout)
        found.append({"threads": threads, "dtype": dtype, **made})
    return {**max(found, key=lambda row: row["answers_per_s"]), "each": found}


def front_end(bench: Workbench, before: dict[str, Any]) -> dict[str, Any]:
    """The front end with an engine that answers at once, beside a bare echo of the same bytes.

    Four connections with 16 requests under way each. Requests are sealed in advance, and the
    generator only counts events. Rates are requests a second by the wall clock. The server's CPU
    time is given too, because generator and stub engine share the machine.
    """
    recorded = bench.folder / "recording.json"
    options = [
        option
        for option in server_options(load({}, environ={}), 0)
        if option[0] != "grpc.max_allowed_incoming_connections"
    ]

    async def record(place: Site) -> int:
        async with fleet(1, place.dial, bench.pool) as (device,):
            made = await Recording.of(device, options, bench.identities.directory)
            made.write(recorded)
            return len(made.events)

    async def drive(place: Site, events: int) -> dict[str, float]:
        async with fleet(_PUMPS, place.dial, bench.pool) as them:
            most = int(bench.seconds * _MOST_PER_S / _PUMPS)
            items = len(bench.pool.items)
            sealed = [
                [device.sealed(device.prepare(n % items)) for n in range(most)] for device in them
            ]
            pid, began = place.server.pid, time.monotonic()
            before_s, stop = cpu_seconds(pid), began + bench.seconds
            pumps = (
                pump(device, device.raw_call(), raws, _PUMPED, events, stop)
                for device, raws in zip(them, sealed, strict=True)
            )
            # A refusal has only one event, so a pump with many refusals waits for ever.
            done = sum(await asyncio.wait_for(asyncio.gather(*pumps), bench.seconds + 30))
            used, wall = cpu_seconds(pid) - before_s, time.monotonic() - began
        return {"per_s": done / wall, "per_cpu_s": done / used, "server_cpu_share": used / wall}

    rows: dict[str, list[dict[str, float]]] = {"front_end": [], "echo": []}
    with stubbed(bench.folder, bench.identities) as stub:
        events = bench.loop.run_until_complete(record(stub))
        echo = Child(
            "echo", ["benchmarks.serve.echo", str(recorded)], bench.folder / "echo.log", ENVIRONMENT
        )
        with echo:
            told = echo.ready(60)
            rival = Site(echo, Ready(f"127.0.0.1:{told['port']}", ""), bench.identities)
            for _ in range(1 if bench.quick else 3):
                rows["front_end"].append(bench.loop.run_until_complete(drive(stub, events)))
                rows["echo"].append(bench.loop.run_until_complete(drive(rival, events)))
    best = {
        name: {key: max(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }
    return {
        "rows": rows,
        "best": best,
        "ratio": best["front_end"]["per_s"] / best["echo"]["per_s"],
        "ratio_by_cpu": best["front_end"]["per_cpu_s"] / best["echo"]["per_cpu_s"],
    }


# ------------------------------------------------------------------ memory


def steady(minutes: float) -> Part:
    """Steady load at half of the peak; memory is read each second."""

    async def work(bench: Workbench, place: Site, before: dict[str, Any]) -> dict[str, Any]:
        rate = 0.5 * before["throughput"]["many"]["answers_per_s"]
        items, seconds = len(bench.pool.items), minutes * 60
        count = 0
        async with fleet(32, place.dial, bench.pool) as them, sampled(place.memory) as memory:
            began = time.monotonic()
            while (spent := time.monotonic() - began) < seconds:
                stretch = await Poisson(them, items, rate, min(20.0, seconds - spent), count).run()
                count += len(stretch.answered)
                forget(them)
                held = ", ".join(
                    f"{kind} {size / 1e6:.0f} MB"
                    for kind, size in memory[-1].items()
                    if kind != "seconds"
                )
                left = max(0.0, seconds - (time.monotonic() - began)) / 60
                print(f"serve: soak, {count} answers, {left:.1f} minutes to go; {held}", flush=True)
        return {"minutes": minutes, "answers": count, "memory": memory}

    return on_site(work)


def forget(devices_: list[Device]) -> None:
    """Let devices forget ended requests, so that a long run needs no more memory."""
    for device in devices_:
        device.forget()
