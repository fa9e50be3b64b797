"""Load: Poisson arrivals at a rate (open loop), or a fixed number of requests under way (closed).

In the open loop, latency counts from when a request was due, not from when it was sent. So a slow
service cannot slow the measurement down.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks.serve.device import Device
from benchmarks.serve.ledger import Entry
from benchmarks.serve.pool import Pool
from edge_agent.uplink.dial import Dial

_CONNECTS = 16


@asynccontextmanager
async def fleet(
    count: int,
    dial: Callable[[int], Dial],
    pool: Pool,
    first: int = 0,
    tries: int = 1,
    name: str = "",
    whole: bool = False,
) -> AsyncIterator[list[Device]]:
    """Connected devices, numbered from `first`; with a name, connections of one device."""
    devices = [
        Device(name or f"device-{first + i}", dial(first + i), pool, tries=tries, whole=whole)
        for i in range(count)
    ]
    gate = asyncio.Semaphore(_CONNECTS)

    async def connect(device: Device) -> None:
        async with gate:
            await (device.connect() if tries == 1 else device.reach())

    try:
        await asyncio.gather(*map(connect, devices))
        yield devices
    finally:
        await asyncio.gather(*(device.close() for device in devices))


@dataclass
class Stretch:
    """The measurements of one stretch of load.

    Attributes:
        seconds: its length.
        offered: requests due a second.
        entries: all requests of the stretch.
        late_sends_s: delay of the generator's own wake-ups, 99th percentile.
    """

    seconds: float
    offered: float
    entries: list[Entry] = field(repr=False)
    late_sends_s: float = 0.0

    @property
    def answered(self) -> list[Entry]:
        """Requests that were answered."""
        return [entry for entry in self.entries if entry.answered]

    def rate(self, within_s: float = float("inf")) -> float:
        """Answers a second, counting those that came within `within_s` of when they were due."""
        good = [entry for entry in self.answered if entry.ended - entry.due <= within_s]
        return len(good) / self.seconds

    def latency_ms(self, quantile: float, what: str = "ended") -> float:
        """A quantile of the answers' time from due to `ended` or `first_token`; nan without any."""
        times = [getattr(entry, what) - entry.due for entry in self.answered]
        return float(np.quantile(times, quantile) * 1e3) if times else float("nan")

    def refused(self) -> dict[str, int]:
        """Requests without an answer, by cause."""
        return dict(Counter(e.cause or "none" for e in self.entries if not e.answered))

    def row(self) -> dict[str, float | dict[str, int]]:
        """Everything, as plain numbers."""
        row: dict[str, float | dict[str, int]] = {
            "seconds": round(self.seconds, 2),
            "offered_per_s": round(self.offered, 2),
            "answers_per_s": round(self.rate(), 2),
            "requests": len(self.entries),
            "refused": self.refused(),
            "late_sends_ms": round(self.late_sends_s * 1e3, 3),
        }
        for what, name in (("first_token", "first_token"), ("ended", "answer")):
            for quantile in (0.5, 0.95, 0.99):
                value = self.latency_ms(quantile, what)
                row[f"{name}_p{quantile * 100:.0f}_ms"] = round(value, 3)
        return row


class Poisson:
    """Open loop: `rate` arrivals a second in all, each at a random device.

    A device keeps to its credit: further requests wait in the device. After `patience_s` they are
    dropped unsent, as a camera drops an old picture.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        items: int,
        rate: float,
        seconds: float,
        seed: int,
        patience_s: float = float("inf"),
    ) -> None:
        rng = np.random.default_rng(seed)
        count = int(rng.poisson(rate * seconds))
        self._after = np.sort(rng.uniform(0, seconds, count))
        self._who = rng.integers(0, len(devices), count)
        asked = rng.integers(0, items, count)
        self._devices, self._rate, self._seconds = devices, rate, seconds
        self._patience_s = patience_s
        self._entries = [
            devices[who].prepare(int(item)) for who, item in zip(self._who, asked, strict=True)
        ]
        self._waiting: dict[Device, deque[Entry]] = {device: deque() for device in devices}
        self._sends: set[asyncio.Task[None]] = set()
        self._lags: list[float] = []

    async def run(self, settle_s: float = 20.0) -> Stretch:
        """Send every request when it is due, then wait for the open ones."""
        for device in self._devices:
            device.ended = partial(self._ended, device)
        started = time.monotonic() + 0.05
        for entry, after in zip(self._entries, self._after, strict=True):
            entry.due = started + float(after)
        for entry, who in zip(self._entries, self._who, strict=True):
            while (wait := entry.due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._lags.append(time.monotonic() - entry.due)
            device = self._devices[who]
            self._waiting[device].append(entry)
            self._next(device)
        if (left := started + self._seconds - time.monotonic()) > 0:
            await asyncio.sleep(left)
        await asyncio.gather(*(device.settle(settle_s) for device in self._devices))
        for device in self._devices:
            device.ended = lambda entry: None
        lag = float(np.quantile(self._lags, 0.99)) if self._lags else 0.0
        return Stretch(self._seconds, self._rate, self._entries, lag)

    def _ended(self, device: Device, entry: Entry) -> None:
        self._next(device)

    def _next(self, device: Device) -> None:
        waiting = self._waiting[device]
        while waiting and len(device.open) < device.limits.max_in_flight:
            entry = waiting.popleft()
            if time.monotonic() - entry.due > self._patience_s:
                entry.cause = "dropped_by_device"
                continue
            device.open[entry.id] = entry
            task = asyncio.create_task(device.send(entry))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)


async def closed_loop(
    devices: Sequence[Device], items: int, under_way: int, seconds: float, warm_s: float = 1.0
) -> Stretch:
    """Keep `under_way` requests under way, spread over the devices.

    Requests that end in the first `warm_s` are not counted.
    """
    entries: list[Entry] = []
    begun = time.monotonic()
    stop = begun + warm_s + seconds
    over = {device: asyncio.Queue[Entry]() for device in devices}
    for device in devices:
        device.ended = over[device].put_nowait

    async def work(number: int) -> None:
        device, turn = devices[number % len(devices)], number
        while (now := time.monotonic()) < stop:
            entry = device.prepare(turn % items, now)
            turn += 7919
            entry.due = time.monotonic()
            entries.append(entry)
            await device.send(entry)
            await over[device].get()

    await asyncio.gather(*map(work, range(under_way)))
    for device in devices:
        device.ended = lambda entry: None
    counted = [e for e in entries if begun + warm_s <= e.ended <= stop]
    return Stretch(seconds, len(counted) / seconds, counted)


async def pump(
    device: Device, call: Any, raws: Sequence[bytes], under_way: int, events: int, stop: float
) -> int:
    """Write sealed requests to a call as fast as it takes them; returns how many ended.

    The cheapest generator: it counts messages and does not parse them.

    Args:
        device: the call's device.
        call: an Infer call that returns raw bytes.
        raws: the requests.
        under_way: most requests without their last event.
        events: events of each request.
        stop: when to stop, on the monotonic clock.
    """
    room = asyncio.Semaphore(under_way)

    async def write() -> None:
        for raw in raws:
            await room.acquire()
            await call.write(raw)
        raise RuntimeError(f"{device.name}: {len(raws)} sealed requests were too few")

    writing = asyncio.create_task(write())
    heard = 0
    try:
        while time.monotonic() < stop:
            if writing.done():
                writing.result()
            await call.read()
            heard += 1
            if heard % events == 0:
                room.release()
    finally:
        writing.cancel()
        call.cancel()
    return heard // events


async def calm_answers(device: Device, items: int) -> list[str]:
    """The answer to each item, one at a time.

    Raises:
        RuntimeError: one was refused.
    """
    ended: asyncio.Queue[Entry] = asyncio.Queue()
    device.ended = ended.put_nowait
    texts = []
    for item in range(items):
        await device.send(device.prepare(item, time.monotonic()))
        entry = await ended.get()
        if not entry.answered:
            raise RuntimeError(f"item {item} was refused: {entry.cause}")
        texts.append(entry.answers[0])
    device.ended = lambda entry: None
    return texts


@asynccontextmanager
async def sampled(
    read: Callable[[], dict[str, int]], every_s: float = 1.0
) -> AsyncIterator[list[dict[str, float]]]:
    """Call `read` repeatedly while the block runs; yields the growing list of results."""
    samples: list[dict[str, float]] = []
    started = time.monotonic()

    async def watch() -> None:
        while True:
            found = await asyncio.to_thread(read)
            samples.append({"seconds": round(time.monotonic() - started, 2), **found})
            await asyncio.sleep(every_s)

    task = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
