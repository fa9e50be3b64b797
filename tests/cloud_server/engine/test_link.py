"""The way between the front end and the engine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cloud_server.engine import link
from cloud_server.engine.jobs import (
    Status,
)
from cloud_server.engine.link import EngineLink
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.processes import alive, children, until


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


def test_the_engine_ends_with_a_front_end_that_is_killed(files: Files) -> None:
    with stage.running_server(
        files.model, [files.bundle], "--heartbeat-timeout-s", "600"
    ) as server:
        engines = [pid for pid in children(server.process.pid) if alive(pid)]
        assert engines
        server.process.kill()
        server.process.wait()
        until(lambda: not any(map(alive, engines)))
