"""What the agent takes beside its model: CPU time at five frames a second from a camera.

The model's part is the CPU time inside ONNX Runtime's runs, on the threads that call them (the
model has one thread). The camera's process is told apart. The service answers at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.edge.device import DeviceJob
from benchmarks.edge.figures import at_most
from benchmarks.edge.narrow import Shape
from benchmarks.edge.stage import clip, stage
from benchmarks.serve.site import cpu_seconds, descendants
from protos.errors import BridgeError
from reference.demo.testset import TestSet

FPS = 5
SECONDS, WARM_S = 90.0, 10.0


def own_cost(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns shares of a core, and `figures`."""
    with stage(folder, Shape(10e6), stub=True) as at:
        film = clip(folder / "clip.mp4", FPS, TestSet.load("test", 30, 1))
        settings = at.settings(
            "device",
            source=[f"file://{film}?realtime=1&loop=1&fps={FPS}&name=gate"],
            questions=["is there a fire ?"],
            log_level="info",
        )
        with at.device(DeviceJob(settings)) as device:
            device.watching()
            _answers(device.answers, 1, 300.0)
            time.sleep(2.0 if quick else WARM_S)
            cameras = list(descendants(device.process.pid))
            first, camera_s = device.answers[-1], sum(map(cpu_seconds, cameras))
            time.sleep(10.0 if quick else SECONDS)
            last, camera_s = device.answers[-1], sum(map(cpu_seconds, cameras)) - camera_s
            frames = device.answers.index(last) - device.answers.index(first)
            device.stop()
        if device.ended["torch"]:
            raise BridgeError("the device loaded torch: its cost is not that of a bare device")
    passed_s = last["at_s"] - first["at_s"]
    model_s = last["model_s"] - first["model_s"]
    own_s = last["cpu_s"] - first["cpu_s"] - model_s
    share = 100 * own_s / passed_s * FPS / (frames / passed_s)
    return {
        "frames_per_s": round(frames / passed_s, 2),
        "own_ms_per_frame": round(1000 * own_s / frames, 2),
        "model_ms_per_frame": round(1000 * model_s / frames, 2),
        "camera_ms_per_frame": round(1000 * camera_s / frames, 2),
        "figures": [
            at_most("agent's CPU beside the model, 5 frames/s", share, 5.0, "% of a core"),
        ],
    }


def _answers(answers: list[dict[str, Any]], count: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while len(answers) < count:
        if time.monotonic() > deadline:
            raise BridgeError("a device gave no answer")
        time.sleep(0.2)
