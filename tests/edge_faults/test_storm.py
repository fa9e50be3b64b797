"""A hundred agents whose service goes and comes back: they do not all knock at once."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from PIL import Image

from benchmarks.serve.identities import Identities
from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.prefill import load
from edge_agent.sight import Sight
from edge_agent.sources import Capture
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.dial import CHANNEL_OPTIONS
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request
from edge_agent.uplink.retry import RetryPolicy
from protos.layout import KVLayout
from protos.process import logs
from tests.edge_faults.faults import EdgeFaults
from tests.edge_faults.station import QUESTION, Service, files

AGENTS, AWAY_S, FRAMES_EVERY_S = 100, 25.0, 3.0
STEADY_S = 8.0
"""So long before the outage ends pauses are drawn from 0 to 10 s: 20 attempts a second."""
_IPV4, _TCP, _SYN, _ACK = b"\x08\x00", 6, 2, 16


class Seen:
    """A model that saw its one picture beforehand."""

    def __init__(self, layout: KVLayout, sight: Sight) -> None:
        self.layout, self._sight = layout, sight

    def see(self, picture: Image.Image) -> Sight:
        return self._sight


class Knocks(threading.Thread):
    """Counts connection attempts to a port of this machine, by the second."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.at: list[float] = []
        self._port = port
        self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._packets.bind(("lo", 0))

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                packet, address = self._packets.recvfrom(96)
                if address[2] == socket.PACKET_OUTGOING or packet[12:14] != _IPV4:
                    continue
                tcp = 14 + 4 * (packet[14] & 0xF)
                to = int.from_bytes(packet[tcp + 2 : tcp + 4], "big")
                knock = packet[tcp + 13] & (_SYN | _ACK) == _SYN
                if packet[23] == _TCP and to == self._port and knock:
                    self.at.append(time.monotonic())

    def per_s(self, begin: float, end: float) -> list[int]:
        """Attempts in each second of a stretch of time."""
        seconds = Counter(int(at - begin) for at in self.at if begin <= at < end)
        return [seconds[at] for at in range(int(end - begin))]

    def close(self) -> None:
        self._packets.close()


@pytest.fixture
def crowded(export: Path, tmp_path: Path) -> Iterator[Service]:
    """A service with a hundred devices."""
    made = Service(tmp_path, Identities.make(tmp_path / "directory", AGENTS))
    made.start()
    yield made
    made.stop()


def test_a_service_that_comes_back_is_not_run_over(
    crowded: Service, export: Path, tmp_path: Path, edge_faults: EdgeFaults
) -> None:
    model = load(export)
    picture = Image.open(io.BytesIO(files()[0])).convert("RGB")
    seen = Seen(model.layout, model.see(picture))
    roots = crowded.identities.authority.trusted_pem
    knocks, outcomes, chance = Knocks(crowded.port), list[Outcome](), random.Random(13)
    knocks.start()
    over = asyncio.Event()
    back: dict[int, float] = {}

    def uplink(number: int) -> Uplink:
        known = crowded.identities.devices[number]
        secret = grpc.ssl_channel_credentials(roots, known.key, known.chain)
        address = f"localhost:{crowded.port}"
        return Uplink(
            model.layout,
            partial(grpc.aio.secure_channel, address, secret, options=CHANNEL_OPTIONS),
            EncoderStore(tmp_path / "encoders"),
            Metrics(),
            logs.configure("critical"),
            RetryPolicy(give_up_s=0.0),
        )

    async def one(number: int) -> None:
        way = uplink(number)
        await asyncio.sleep(chance.uniform(0.0, FRAMES_EVERY_S))
        while not over.is_set():
            maker = FrameMaker(Capture("a", picture, time.time()), seen, Plan(), Metrics())  # type: ignore[arg-type]
            async with way.credit():
                outcomes.append(await way.deliver(Request(QUESTION, maker)))
            back[number] = time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                pause_s = chance.uniform(0.5, 1.5) * FRAMES_EVERY_S
                await asyncio.wait_for(over.wait(), pause_s)
        await way.close()

    async def storm() -> tuple[float, float]:
        them = [asyncio.create_task(one(number)) for number in range(AGENTS)]
        while len(back) < AGENTS:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(crowded.stop, signal.SIGKILL)
        gone = time.monotonic()
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(crowded.start)
        ready = time.monotonic()
        while sum(at > ready for at in back.values()) < AGENTS:
            await asyncio.sleep(0.05)
            assert time.monotonic() < ready + 90, "some did not come back"
        over.set()
        await asyncio.gather(*them)
        return gone, ready

    gone, ready = asyncio.run(storm())
    knocks.close()
    times = Counter(outcome.request_id for outcome in outcomes)
    answered = [outcome for outcome in outcomes if outcome.answer is not None]
    away = knocks.per_s(gone, gone + AWAY_S)
    returning = knocks.per_s(gone + AWAY_S, time.monotonic())
    later = max(away[-int(STEADY_S) :])
    edge_faults.judged(
        "storm: a hundred agents, service killed",
        AGENTS,
        len(outcomes),
        len(outcomes) - len(answered),
        sum(number - 1 for number in times.values()),
        attempts_in_each_second_away=away,
        attempts_in_each_second_when_back=returning,
        all_back_after_s=round(max(back.values()) - ready, 1),
    )
    assert later <= AGENTS / 2, "they knock in step"
    assert max(returning) <= AGENTS, "each has two connections: half of them at once is a storm"
