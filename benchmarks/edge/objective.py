"""A link whose rate changes in steps: answers in time, by the controller and by fixed points.

A camera takes five pictures a second; one that waits gives way to the next. Counted from the
capture to the answer, over every capture that was due.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.edge.device import DeviceJob
from benchmarks.edge.figures import at_least, beside
from benchmarks.edge.narrow import Shape
from benchmarks.edge.stage import Stage, pictures, right, rounds, stage
from reference.demo.testset import TestSet

FRAMES_PER_S, OBJECTIVE_S = 5.0, 0.5
STEPS_KBIT = (10_000, 1000, 200, 50, 20, 50, 200, 1000, 10_000)
STEP_S = 20.0
HIGHEST = "x1-q8-r24"
FIXED = ("x5-q6", "x4-q6-r24", "x2-q6", "x1-q8-r24", "fp8")
PICTURES = 80


def objective(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns every arm's shares, and `figures`."""
    test = TestSet.load("test", PICTURES, 2)
    step_s = 3.0 if quick else STEP_S
    with stage(folder, Shape(1000.0 * STEPS_KBIT[0])) as at:
        shown = pictures(folder, test)
        arms: dict[str, dict[str, Any]] = {}
        for arm in ("adaptive", *(FIXED[:2] if quick else FIXED)):
            print(f"edge: {arm}, {len(STEPS_KBIT) * step_s:.0f} s", flush=True)
            arms[arm] = _arm(at, shown, test, arm, step_s)
    best = max(FIXED, key=lambda arm: arms[arm]["right_in_time"] if arm in arms else -1.0)
    told = "10 Mbit/s to 20 kbit/s and back, 5 frames/s: answers within 500 ms"
    figures = [
        at_least(f"{told}, adaptive", 100 * arms["adaptive"]["in_time"], 95.0, "% of captures"),
        beside(f"{told}, best fixed point ({best})", 100 * arms[best]["in_time"], "% of captures"),
    ]
    for arm, name in (("adaptive", "adaptive"), (best, f"best fixed point ({best})")):
        share = 100 * arms[arm]["right_in_time"]
        figures.append(beside(f"{told}, and right, {name}", share, "% of captures"))
    return {"arms": arms, "figures": figures}


def _arm(at: Stage, shown: str, test: TestSet, arm: str, step_s: float) -> dict[str, Any]:
    count = round(len(STEPS_KBIT) * step_s * FRAMES_PER_S)
    captures = rounds(test, [number / FRAMES_PER_S for number in range(count)])
    chosen = (
        {"latency_objective_ms": 1000 * OBJECTIVE_S, "highest_point": HIGHEST}
        if arm == "adaptive"
        else {"point": arm}
    )
    spool = str(at.folder / arm / "spool")
    settings = at.settings(arm, spool=spool, **chosen)
    at.link.shape(1000.0 * STEPS_KBIT[0])
    with at.device(DeviceJob(settings, shown, captures, newest=True)) as device:
        began = device.go()
        for number, rate in enumerate(STEPS_KBIT):
            time.sleep(max(0.0, began + number * step_s - time.monotonic()))
            at.link.shape(1000.0 * rate)
        time.sleep(max(0.0, began + len(STEPS_KBIT) * step_s + OBJECTIVE_S - time.monotonic()))
        device.stop()
    in_time, truly = [0] * len(STEPS_KBIT), 0
    points: dict[str, int] = {}
    for one in device.answers:
        if one["error"] is None and one["took_s"] <= OBJECTIVE_S:
            in_time[min(len(in_time) - 1, int(one["due_s"] / step_s))] += 1
            points[one["point"]] = points.get(one["point"], 0) + 1
            truly += right(test, one)
    each = count / len(STEPS_KBIT)
    return {
        "captures": count,
        "in_time": round(sum(in_time) / count, 4),
        "right_in_time": round(truly / count, 4),
        "in_time_by_step": {
            f"{number}: {rate} kbit/s": round(some / each, 3)
            for number, (rate, some) in enumerate(zip(STEPS_KBIT, in_time, strict=True))
        },
        "points": points,
    }
