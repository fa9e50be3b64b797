"""A day of frames in half an hour: memory, descriptors, processes of an agent with two cameras.

Every frame takes the product's whole way: camera's process, shared memory, coder, spool, TLS,
answer, record. The small model sees every eighth picture only, and the service answers at once:
48 frames a second are more than the models make on two cores. Cameras are killed and stopped.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.edge.device import DeviceJob
from benchmarks.edge.figures import at_least, at_most
from benchmarks.edge.narrow import Shape
from benchmarks.edge.stage import clip, stage
from benchmarks.serve.site import descendants
from protos.errors import BridgeError
from protos.process.memory import resident_bytes
from reference.demo.testset import TestSet

FPS, CAMERAS, SEE_EVERY, SAY_EVERY = 24, 2, 8, 100
FAULT_EVERY_S = 40.0
"""Each camera goes on for longer than the minute after which it counts as steady again."""
_SAMPLE_S, _SAY_S = 1.0, 15.0
_START, _WINDOW = 5 / 30, 1 / 30
"""As five minutes are to thirty; a minute of it is compared with the last one."""


@dataclass(frozen=True)
class Moment:
    """The agent at one moment; `cameras_bytes` is of all its cameras' processes."""

    seconds: float
    agent_bytes: int
    cameras_bytes: int
    descriptors: int
    threads: int
    processes: int


def endurance(minutes: float) -> Callable[[Path, bool], dict[str, Any]]:
    """The part that runs for so long, or for two minutes if it is to be quick."""
    return partial(_endurance, minutes)


def _endurance(minutes: float, folder: Path, quick: bool) -> dict[str, Any]:
    seconds = 60 * (min(2.0, minutes) if quick else minutes)
    with stage(folder, Shape(10e6), stub=True) as at:
        film = clip(folder / "clip.mp4", FPS, TestSet.load("test", 30, 1))
        settings = at.settings(
            "device",
            source=[
                f"file://{film}?realtime=1&loop=1&fps={FPS}&stall_s=2&name=camera-{number}"
                for number in range(CAMERAS)
            ],
            questions=["is there a fire ?"],
        )
        job = DeviceJob(settings, see_every=SEE_EVERY, say_every=SAY_EVERY)
        with at.device(job) as device:
            deadline = time.monotonic() + 300
            while not device.answers:
                if time.monotonic() > deadline:
                    raise BridgeError(f"a device gave no answer: see {device.log}")
                time.sleep(0.2)
            samples, faults = _watched(device.process.pid, seconds)
            family = list(descendants(device.process.pid))
            device.stop()
            left = [pid for pid in family if Path(f"/proc/{pid}").exists()]
        output = Path(settings["output"])
        with output.open("rb") as file:
            answered = sum(1 for _ in file)
    found = summary(samples, seconds)
    return {
        "minutes": round(seconds / 60, 1),
        "answered": answered,
        "answered_per_s": round(answered / seconds, 1),
        "share_of_a_days_frames": round(answered / 86400, 3),
        "camera_faults": faults,
        "model_saw_every": SEE_EVERY,
        "processes_left": len(left),
        **found,
        "samples": [asdict(sample) for sample in samples[:: max(1, len(samples) // 120)]],
        "figures": [
            at_most(f"soak, {_told}: memory growth", found["growth_percent"], 5.0, "%"),
            at_most(
                f"soak, {_told}: descriptors, threads and processes more, or left at the end",
                found["more"] + len(left),
                0.0,
                "",
            ),
            at_least("soak: frames answered, of a day's", answered / 86400, 1.0, "days of frames"),
        ],
    }


_told = "since five minutes of thirty"


def summary(samples: list[Moment], seconds: float) -> dict[str, Any]:
    """The last window of a run against the one at its sixth: medians.

    Raises:
        BridgeError: there are too few samples.
    """
    start, window = _START * seconds, _WINDOW * seconds
    early = [one for one in samples if start <= one.seconds < start + window]
    late = [one for one in samples if one.seconds >= seconds - window]
    if len(early) < 3 or len(late) < 3:
        raise BridgeError(f"{len(samples)} samples are too few to tell: let it run longer")

    def middle(some: list[Moment], name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in some))

    counted = ("descriptors", "threads", "processes")
    return {
        "growth_percent": 100 * (middle(late, "agent_bytes") / middle(early, "agent_bytes") - 1),
        "more": sum(max(0.0, middle(late, name) - middle(early, name)) for name in counted),
        "early": {name: middle(early, name) for name in Moment.__dataclass_fields__},
        "late": {name: middle(late, name) for name in Moment.__dataclass_fields__},
        "cameras_most_bytes": max(one.cameras_bytes for one in samples),
    }


def _watched(agent: int, seconds: float) -> tuple[list[Moment], int]:
    """Moment an agent for so long, while its cameras are killed and stopped in turn."""
    samples: list[Moment] = []
    began = said = time.monotonic()
    every_s = min(FAULT_EVERY_S, seconds / 6)
    faults = 0
    while (passed := time.monotonic() - began) < seconds:
        cameras = [pid for pid, line in descendants(agent).items() if "cameras.process" in line]
        if passed > (faults + 1) * every_s and passed < seconds * (1 - 2 * _WINDOW) and cameras:
            kind = signal.SIGSTOP if faults % 4 == 3 else signal.SIGKILL
            os.kill(cameras[faults % len(cameras)], kind)
            faults += 1
        if not Path(f"/proc/{agent}/fd").exists():
            raise BridgeError("the agent ended")
        samples.append(
            Moment(
                round(passed, 1),
                resident_bytes(agent),
                sum(map(resident_bytes, cameras)),
                len(os.listdir(f"/proc/{agent}/fd")),
                len(os.listdir(f"/proc/{agent}/task")),
                len(cameras),
            )
        )
        if time.monotonic() - said > _SAY_S:
            said = time.monotonic()
            print(
                f"edge: soak, {(seconds - passed) / 60:.1f} minutes to go; agent "
                f"{samples[-1].agent_bytes / 1e6:.1f} MB, {samples[-1].descriptors} descriptors, "
                f"{faults} faults of cameras",
                flush=True,
            )
        time.sleep(_SAMPLE_S)
    return samples, faults
