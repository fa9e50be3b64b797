"""A camera whose captures a thread takes, and what its tests look at."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from edge_agent.cameras import camera as camera_module
from edge_agent.cameras.camera import Camera
from edge_agent.cameras.watch import Patience
from edge_agent.metrics import Metrics
from edge_agent.sources import Capture
from protos.process import logs

QUICK = Patience(backoff_max_s=0.01)


def value(camera: Camera, name: str, **labels: str) -> float:
    whole = f"neural_bridge_edge_camera_{name}"
    found = camera.metrics.registry.get_sample_value(whole, {"camera": camera.name, **labels})
    return found or 0.0


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and camera_module.PROCESS in child.cmdline()
    ]


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


class Watched:
    """A camera whose captures are taken by a thread, as the agent's are."""

    def __init__(self, camera: Camera) -> None:
        self.camera, self.taken = camera, 0
        self.logged = io.StringIO()
        camera.attach(Metrics(), logs.configure("info", stream=self.logged))
        self.last: Capture | None = None
        self.names: list[str] = []
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        for capture in self.camera:
            self.names.append(capture.name)
            self.last, self.taken = capture, self.taken + 1

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.logged.getvalue().splitlines()]

    def close(self) -> None:
        self.camera.close()
        self._thread.join()
