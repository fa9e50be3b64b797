"""The way between the front end and the engine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import zmq

from cloud_server.engine import link
from cloud_server.engine.jobs import Cancel, Dropped, Message, Status, pack, unpack_all
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
