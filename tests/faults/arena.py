"""A real service under steady load while faults happen, and the verdict on every request.

Each test injects faults of one kind and reports them with `Faults.judged`, which asserts: every
request was answered exactly once with the calm answer, or refused with a cause.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serve.device import Device
from benchmarks.serve.ledger import Entry, Verdict, judge
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool
from edge_agent.uplink.dial import Dial

FULL = os.environ.get("NEURAL_BRIDGE_FAULTS") == "full"
"""Whether this is `make test-faults`; otherwise a few faults of each kind are injected."""
SLOW = "takes a minute: `make test-faults` runs it"
QUICK = (
    *("--restart-backoff-s", "0.01", "--restart-backoff-max-s", "0.05"),
    *("--heartbeat-s", "0.2", "--heartbeat-timeout-s", "2"),
)
"""Flags of a service that notices and restarts sooner than usual."""
ITEMS = 256 if FULL else 64
"""Items of the pool that faults are tried on. Each engine that is killed while it runs a request
alone gets that item's bytes quarantined, so there are more items than such kills."""
_PATIENCE_S = 120.0


def times(few: int, full: int) -> int:
    """How many faults of a kind to inject."""
    return full if FULL else few


@dataclass
class Faults:
    """What was injected so far, for `build/faults.json`.

    Attributes:
        path: of the report; None outside `make test-faults`.
        kinds: by kind, faults and the verdict's figures.
    """

    path: Path | None
    kinds: dict[str, dict[str, object]] = field(default_factory=dict)

    def judged(
        self,
        kind: str,
        faults: int,
        entries: Sequence[Entry],
        calm: Sequence[str],
        strangers: int = 0,
        **more: object,
    ) -> Verdict:
        """Report the faults of one kind, and assert that nothing was lost, doubled or wrong.

        Args:
            kind: its name.
            faults: how many were injected.
            entries: every request sent meanwhile by good devices.
            calm: the right answers.
            strangers: events that reached somebody whom they do not concern.
            more: further figures.
        """
        verdict = judge(entries, calm)
        print(f"faults: {kind}: {faults} injected; {verdict}", flush=True)
        self.kinds[kind] = {
            "faults": faults,
            "requests": verdict.requests,
            "answered": verdict.answered,
            "refused": verdict.refused,
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "wrong": len(verdict.wrong),
            "seen_by_a_stranger": strangers,
            "sent_again": verdict.resent,
            **more,
        }
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = {"faults": sum(int(str(k["faults"])) for k in self.kinds.values())}
            self.path.write_text(json.dumps(whole | {"kinds": self.kinds}, indent=1) + "\n")
        assert not verdict.lost, verdict.lost[:5]
        assert not verdict.doubled, verdict.doubled[:5]
        assert not verdict.wrong, verdict.wrong[:5]
        assert not strangers
        return verdict


class Steady:
    """Devices that always have a number of requests under way, until told to stop."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self.devices = devices
        self.entries: list[Entry] = []
        self._stop = False
        self._news = asyncio.Event()
        self._over = {device.name: asyncio.Queue[Entry]() for device in devices}
        for device in devices:
            device.ended = self._hear(device)

    def _hear(self, device: Device) -> Callable[[Entry], None]:
        def hear(entry: Entry) -> None:
            self._over[device.name].put_nowait(entry)
            self._news.set()

        return hear

    async def work(self, number: int) -> None:
        """One request after the other."""
        device, turn = self.devices[number % len(self.devices)], number
        while not self._stop:
            entry = device.prepare(turn % ITEMS, time.monotonic())
            turn += 31
            self.entries.append(entry)
            await device.send(entry)
            await self._over[device.name].get()

    def stop(self) -> None:
        """Send nothing new."""
        self._stop = True

    @property
    def answered(self) -> int:
        """Requests answered so far."""
        return sum(entry.answered for entry in self.entries)

    @property
    def under_way(self) -> list[Entry]:
        """Requests that were sent and have not ended."""
        return [e for device in self.devices for e in device.open.values() if e.sent]

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds; looked at after each request that ends.

        Raises:
            TimeoutError: it did not in two minutes.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not holds():
            self._news.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{what} never came to be")
            try:
                await asyncio.wait_for(self._news.wait(), min(left, 0.05))
            except asyncio.TimeoutError:
                continue

    async def more(self, answers: int) -> None:
        """Wait until so many more requests were answered.

        Raises:
            TimeoutError: they were not in two minutes.
        """
        goal = self.answered + answers
        await self.until(lambda: self.answered >= goal, f"{answers} more answers")

    @property
    def strangers(self) -> int:
        """Events that reached a device that never sent their request."""
        return sum(len(device.strangers) for device in self.devices)

    def refusals(self) -> Counter[str]:
        """Causes of refused and broken attempts."""
        return Counter(cause for e in self.entries for cause in (*e.refusals, *e.broken))


@asynccontextmanager
async def steady(
    dial: Callable[[int], Dial], pool: Pool, devices: int = 8, under_way: int = 16, first: int = 0
) -> AsyncIterator[Steady]:
    """Load while the block runs; afterwards every request has had two minutes to end."""
    async with fleet(devices, dial, pool, first, tries=10_000) as them:
        load = Steady(them)
        tasks = [asyncio.create_task(load.work(number)) for number in range(under_way)]
        try:
            yield load
        finally:
            load.stop()
            await asyncio.gather(*(device.settle(_PATIENCE_S) for device in them))
            for task in tasks:
                task.cancel()
            failed = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in failed:
            if isinstance(failure, Exception):
                raise failure
