"""The way between the front end and the engine."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
import zmq

from cloud_server.engine import link
from cloud_server.engine.jobs import (
    Accepted,
    Cancel,
    Dropped,
    Job,
    Message,
    Status,
    pack,
    unpack,
    unpack_all,
)
from cloud_server.engine.link import EngineLink
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.processes import alive, children
from tests.fakes.loop import until


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

    made = EngineLink(f"ipc://{short_dir}/engine.sock", "one", 0.05, 60.0, status, left)
    made.start()
    try:
        assert gone.wait(60), "silence that goes on still ends it"
    finally:
        made.stop()
    assert gone_at[0] > 4


def test_no_job_is_missed_while_heartbeats_use_the_same_socket(short_dir: Path) -> None:
    """A thread that uses a ZeroMQ socket consumes the signal that another thread waits for."""
    context, address = zmq.Context(), f"ipc://{short_dir}/engine.sock"
    front = context.socket(zmq.ROUTER)
    front.linger = 0
    front.bind(address)
    made = EngineLink(address, "one", 1e-4, 60.0, Status, lambda: None)
    made.start()
    try:
        who = front.recv_multipart()[0]
        for number in range(3000):
            front.send_multipart([who, *pack(Cancel(number))])
            assert made.receive(block=True) == Cancel(number)
            made.send(Dropped(number), Dropped(number))
            heard: list[Message] = [Status()]
            while isinstance(heard[0], Status):
                heard = unpack_all(front.recv_multipart()[1:])
            assert heard == [Dropped(number)] * 2, "what is sent together arrives together"
        made.wake()
        assert made.receive(block=True) == Status()
    finally:
        made.stop()
        front.close()
        context.term()


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
    """The socket's descriptor tells of news once; sending may use that up."""

    async def work() -> None:
        address, count = f"ipc://{short_dir}/front.sock", 500
        connected = asyncio.Event()
        front = link.FrontLink(address, 600.0, lambda message: connected.set())
        await front.start()
        front.expect("one")
        context = zmq.Context()
        engine = context.socket(zmq.DEALER)
        engine.identity = b"one"
        engine.rcvtimeo = 60000
        engine.connect(address)
        engine.send_multipart(pack(Status()))

        def answer() -> None:
            for _ in range(count):
                job = unpack(engine.recv_multipart())
                assert isinstance(job, Job)
                engine.send_multipart(pack(Accepted(job.id, 0, 0, 0, 0)))

        over: asyncio.Queue[object] = asyncio.Queue()
        try:
            await asyncio.wait_for(connected.wait(), 60)
            answering = asyncio.create_task(asyncio.to_thread(answer))
            for number in range(count):
                await front.submit(Job(number, "s", 0, "r", "", 1, 0), over.put_nowait)
                await asyncio.sleep(0)
            await asyncio.wait_for(answering, 60)
            said = [await asyncio.wait_for(over.get(), 60) for _ in range(count)]
            assert [one.job for one in said if isinstance(one, Accepted)] == list(range(count))
        finally:
            await front.stop()
            engine.close(0)
            context.term()

    asyncio.run(work())
