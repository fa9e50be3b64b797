"""After an outage of a day: how soon live frames are answered while the backlog goes up.

The backlog is made by the agent itself while the link is down, from captures at times all over a
day. The spool's clock is simulated: each row's time is set back to its capture's.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from benchmarks.edge.device import DeviceJob, Due
from benchmarks.edge.figures import at_most, percentile
from benchmarks.edge.narrow import Shape
from benchmarks.edge.stage import Stage, pictures, rounds, stage
from edge_agent.spool.database import FILE
from protos.errors import BridgeError
from reference.demo.testset import TestSet

DAY_S = 86400.0
BACKLOG, LIVE, ROUNDS = 8640, 100, 3
FRAMES_PER_S = 2.0
BITS_PER_S = 1e6
DEVICES = ("normal", "catching up")
_OUTAGE = DEVICES[1]
_FILL_S = 1800.0
_SAY_S = 10.0


def catch_up(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns the times of both arms, and `figures`."""
    test = TestSet.load("test", 80, 2)
    backlog, live = (400, 30) if quick else (BACKLOG, LIVE)
    with stage(folder, Shape(BITS_PER_S), devices=len(DEVICES)) as at:
        shown = pictures(folder, test)
        for name in DEVICES:
            _connected(at, shown, test, name)
        waits = _outage(at, shown, test, backlog)
        arms: dict[str, list[dict[str, Any]]] = {name: [] for name in DEVICES}
        caught = []
        for number in range(1 if quick else ROUNDS):
            for name in DEVICES:
                print(f"edge: {name}, round {number + 1}, {live / FRAMES_PER_S:.0f} s", flush=True)
                answers, old_per_s = _live(at, shown, test, name, number, live)
                arms[name] += answers
                if name == _OUTAGE:
                    caught.append(round(old_per_s, 1))
    times = {arm: _times(answers) for arm, answers in arms.items()}
    ratio = times[_OUTAGE]["p95_ms"] / times[DEVICES[0]]["p95_ms"]
    name = "after a 24 h outage: p95 of live frames while catching up, of normal"
    return {
        "arms": times,
        "backlog": waits,
        "old_frames_per_s": caught,
        "figures": [at_most(name, ratio, 1.5, "ratio")],
    }


def _times(answers: list[dict[str, Any]]) -> dict[str, float]:
    """From the capture to the answer, and what of it the model and the way took, milliseconds."""
    kinds = {
        "": [1000 * one["took_s"] for one in answers],
        "prefill_": [one["edge_ms"]["prefill"] for one in answers],
        "sent_": [one["edge_ms"]["uplink"] for one in answers],
    }
    return {"live_frames": len(answers)} | {
        f"{kind}p{100 * share:.0f}_ms": round(percentile(values, share), 1)
        for kind, values in kinds.items()
        for share in (0.5, 0.95)
    }


def _connected(at: Stage, shown: str, test: TestSet, name: str) -> None:
    """Let a device meet the service: it then has an encoder, and terms to make frames by."""
    job = DeviceJob(_settings(at, name), shown, rounds(test, [0.0, 0.5]), name="first")
    with at.device(job) as device:
        device.go()
        device.wait(300.0)


def _outage(at: Stage, shown: str, test: TestSet, backlog: int) -> int:
    """Fill a spool while the link is down; returns how many frames wait."""
    apart_s = DAY_S / backlog
    captures = [
        Due(0.0, asked.picture, asked.question, DAY_S - number * apart_s)
        for number, asked in enumerate(rounds(test, [0.0] * backlog))
    ]
    at.link.shape(0.0)
    spool = at.folder / _OUTAGE / "spool" / FILE
    job = DeviceJob(_settings(at, _OUTAGE), shown, captures, name="old")
    with at.device(job) as device:
        began = said = device.go()
        while (waits := _rows(spool)) < backlog:
            time.sleep(0.5)
            now = time.monotonic()
            if now - said > _SAY_S:
                said, left_s = now, (now - began) * (backlog / max(1, waits) - 1)
                print(f"edge: {waits} of {backlog} frames wait; {left_s:.0f} s to go", flush=True)
            if now - began > _FILL_S or device.process.poll() is not None:
                raise BridgeError(f"the backlog stopped at {waits} frames: see {device.log}")
        device.stop()
    at.link.shape(BITS_PER_S)
    with contextlib.closing(sqlite3.connect(spool)) as db, db:
        count, newest = db.execute("SELECT count(*), max(id) FROM frames").fetchone()
        db.execute("UPDATE frames SET accepted_s = accepted_s - (? - id) * ?", (newest, apart_s))
    return int(count)


def _live(
    at: Stage, shown: str, test: TestSet, device_name: str, number: int, count: int
) -> tuple[list[dict[str, Any]], float]:
    """What became of a device's live frames in a round, and old frames a second beside them."""
    times = [place / FRAMES_PER_S for place in range(count)]
    job = DeviceJob(_settings(at, device_name), shown, rounds(test, times), name=f"live{number}")
    with at.device(job) as device:
        began = device.go()
        while True:
            time.sleep(0.5)
            answers = [one for one in device.answers if one["capture"].startswith("live")]
            if len(answers) >= count:
                break
            if time.monotonic() - began > times[-1] + 120 or device.process.poll() is not None:
                raise BridgeError(f"{len(answers)} of {count} answers: see {device.log}")
        took_s = time.monotonic() - began
        old = [one for one in device.answers if one["capture"].startswith("old")]
        if failed := [one for one in (*answers, *old) if one["error"] is not None]:
            raise BridgeError(f"{failed[0]['capture']}: {failed[0]['error']}: see {device.log}")
        if device_name == _OUTAGE and not _rows(at.folder / device_name / "spool" / FILE):
            raise BridgeError("the backlog ended before the live frames: make it longer")
        device.stop()
    return answers, len(old) / took_s


def _settings(at: Stage, name: str) -> dict[str, Any]:
    spool = str(at.folder / name / "spool")
    return at.settings(name, DEVICES.index(name), spool=spool, spool_bytes=1 << 30)


def _rows(spool: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM frames").fetchone()[0])
    except sqlite3.Error:
        return 0
