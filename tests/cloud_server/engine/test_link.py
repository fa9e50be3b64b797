"""The way between the front end and the engine."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from cloud_server.engine import link
from cloud_server.engine.jobs import (
    Accepted,
    Cancel,
    Compressed,
    Dropped,
    Job,
    Message,
    Status,
    pack,
    unpack,
)
from cloud_server.engine.link import Blocks, EngineLink, block
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.processes import alive, children
from tests.fakes.loop import until


class Peer:
    """The other end of a link, by hand."""

    def __init__(self, ends: socket.socket) -> None:
        self._ends, self._blocks, self._read = ends, Blocks(), deque[bytes]()

    def send(self, *messages: Message) -> None:
        self._ends.sendall(block(pack(*messages)))

    def read(self) -> bytes:
        while not self._read:
            self._read += self._blocks.take(self._ends.recv(65536))
        return self._read.popleft()


def listening(folder: Path) -> tuple[socket.socket, str]:
    address = f"{folder}/engine.sock"
    front = socket.socket(socket.AF_UNIX)
    front.bind(address)
    front.listen()
    return front, address


def test_an_engine_that_was_frozen_reads_what_came_before_it_calls_the_front_end_silent(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is paused freezes both: each would find the other silent."""
    ahead, beats, gone_at, gone = [0.0], [0], [0], threading.Event()
    real = time.monotonic
    monkeypatch.setattr(link.time, "monotonic", lambda: real() + ahead[0])

    def status() -> Status:
        beats[0] += 1
        if beats[0] == 3:
            ahead[0] = 1000.0  # the process stood still for so long
        return Status()

    def left() -> None:
        gone_at[0] = gone_at[0] or beats[0]
        gone.set()

    front, address = listening(short_dir)
    made = EngineLink(address, "one", 0.05, 60.0, status, left)
    made.start()
    try:
        assert gone.wait(60), "silence that goes on still ends it"
    finally:
        made.stop()
        front.close()
    assert gone_at[0] > 4


def test_no_job_is_missed_while_heartbeats_use_the_same_socket(short_dir: Path) -> None:
    front, address = listening(short_dir)
    made = EngineLink(address, "one", 1e-4, 60.0, Status, lambda: None)
    made.start()
    try:
        peer = Peer(front.accept()[0])
        assert peer.read() == b"one"
        for number in range(3000):
            peer.send(Cancel(number))
            assert made.receive(block=True) == Cancel(number)
            made.send(Dropped(number), Dropped(number))
            heard: list[Message] = [Status()]
            while isinstance(heard[0], Status):
                heard = unpack(peer.read())
            assert heard == [Dropped(number)] * 2, "what is sent together arrives together"
        made.wake()
        assert made.receive(block=True) == Status()
    finally:
        made.stop()
        front.close()


@pytest.mark.slow
def test_the_engine_ends_with_a_front_end_that_is_killed(files: Files) -> None:
    with stage.running_server(
        files.model, [files.bundle], "--heartbeat-timeout-s", "600"
    ) as server:
        engines = [pid for pid in children(server.process.pid) if alive(pid)]
        assert engines
        server.process.kill()
        server.process.wait()
        until(lambda: not any(map(alive, engines)))


def test_what_comes_while_the_front_end_sends_is_taken(short_dir: Path) -> None:
    async def work() -> None:
        address, count = f"{short_dir}/front.sock", 500
        connected = asyncio.Event()
        front = link.FrontLink(address, 600.0, lambda message: connected.set())
        await front.start()
        front.expect("one")
        ends = socket.socket(socket.AF_UNIX)
        ends.settimeout(60)
        ends.connect(address)
        ends.sendall(block(b"one"))
        engine = Peer(ends)
        engine.send(Status())

        def answer() -> None:
            for _ in range(count):
                (job,) = unpack(engine.read())
                assert isinstance(job, Job)
                engine.send(Accepted(job.id, 0, 0, 0, 0))

        over: asyncio.Queue[object] = asyncio.Queue()
        try:
            await asyncio.wait_for(connected.wait(), 60)
            answering = asyncio.create_task(asyncio.to_thread(answer))
            for number in range(count):
                front.submit(Job(number, "s", 0, "r", "", 1, 0), over.put_nowait)
                await asyncio.sleep(0)
            await asyncio.wait_for(answering, 60)
            said = [await asyncio.wait_for(over.get(), 60) for _ in range(count)]
            assert [one.job for one in said if isinstance(one, Accepted)] == list(range(count))
        finally:
            await front.stop()
            ends.close()

    asyncio.run(work())


def test_a_large_message_and_many_small_ones_arrive_whole(short_dir: Path) -> None:
    async def work() -> None:
        address = f"{short_dir}/front.sock"
        connected = asyncio.Event()
        front = link.FrontLink(address, 600.0, lambda message: connected.set())
        await front.start()
        front.expect("one")
        made = EngineLink(address, "one", 600.0, 60.0, Status, lambda: None)
        await asyncio.to_thread(made.start)
        over: asyncio.Queue[object] = asyncio.Queue()
        bodies = [bytes([number]) * size for number, size in enumerate((0, 1, 5_000_000, 70_000))]
        try:
            await asyncio.wait_for(connected.wait(), 60)
            for number, body in enumerate(bodies):
                front.submit(Job(number, "s", 0, "r", "", 1, 0, body=body), over.put_nowait)
            for body in bodies:
                job = await asyncio.to_thread(made.receive, True)
                assert isinstance(job, Job) and job.body == body
            said = [Compressed(number, 0, 0, 0, 0, 0, body) for number, body in enumerate(bodies)]
            await asyncio.to_thread(made.send, *said)
            for one in said:
                assert await asyncio.wait_for(over.get(), 60) == one
        finally:
            await asyncio.to_thread(made.stop)
            await front.stop()

    asyncio.run(work())
