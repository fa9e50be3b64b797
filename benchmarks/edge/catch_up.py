"""After an outage of a day: how soon live frames are answered while the backlog goes up.

The backlog is made by the agent itself while the link is down, from captures at times all over a
day. The spool's clock is simulated: each row's time is set back to its capture's.
"""

from __future__ import annotations

import contextlib
import shutil
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
_FILL_S = 1800.0
_SAY_S = 10.0


def catch_up(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns the times of both arms, and `figures`."""
    test = TestSet.load("test", 80, 2)
    backlog, live = (400, 30) if quick else (BACKLOG, LIVE)
    with stage(folder, Shape(BITS_PER_S)) as at:
        shown = pictures(folder, test)
        _connected(at, shown, test)
        waits = _outage(at, shown, test, backlog)
        arms: dict[str, list[dict[str, Any]]] = {"normal": [], "catching up": []}
        caught = []
        for number in range(1 if quick else ROUNDS):
            for arm, origin in (("normal", "before"), ("catching up", "outage")):
                print(f"edge: {arm}, round {number + 1}, {live / FRAMES_PER_S:.0f} s", flush=True)
                answers, sent_per_s = _live(at, shown, test, origin, f"{arm}-{number}", live)
                arms[arm] += answers
                if origin == "outage":
                    caught.append(round(sent_per_s, 1))
    normal, busy = ([1000 * one["took_s"] for one in arms[arm]] for arm in arms)
    ratio = percentile(busy, 0.95) / percentile(normal, 0.95)
    times = {
        arm: {f"p{100 * share:.0f}_ms": round(percentile(values, share), 1) for share in _SHARES}
        | {"live_frames": len(values)}
        for arm, values in zip(arms, (normal, busy), strict=True)
    }
    name = "after a 24 h outage: p95 of live frames while catching up, of normal"
    return {
        "arms": times,
        "backlog": waits,
        "old_frames_per_s": caught,
        "figures": [at_most(name, ratio, 1.5, "ratio")],
    }


_SHARES = (0.5, 0.9, 0.95)


def _connected(at: Stage, shown: str, test: TestSet) -> None:
    """A device that has met the service once: it has an encoder, and terms to make frames by."""
    job = DeviceJob(_settings(at, "before"), shown, rounds(test, [0.0, 0.5]))
    with at.device(job) as device:
        device.go()
        device.wait(300.0)


def _outage(at: Stage, shown: str, test: TestSet, backlog: int) -> int:
    """Fill a spool while the link is down; returns how many frames wait."""
    _copied(at, "before", "outage")
    apart_s = DAY_S / backlog
    captures = [
        Due(0.0, asked.picture, asked.question, DAY_S - number * apart_s)
        for number, asked in enumerate(rounds(test, [0.0] * backlog))
    ]
    at.link.shape(0.0)
    spool = at.folder / "outage" / "spool" / FILE
    job = DeviceJob(_settings(at, "outage"), shown, captures, name="old")
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
    at: Stage, shown: str, test: TestSet, origin: str, name: str, count: int
) -> tuple[list[dict[str, Any]], float]:
    """What became of live frames of a device in this state, and old frames a second beside them."""
    _copied(at, origin, name)
    times = [number / FRAMES_PER_S for number in range(count)]
    job = DeviceJob(_settings(at, name), shown, rounds(test, times), name="live")
    with at.device(job) as device:
        began = device.go()
        while True:
            time.sleep(0.5)
            answers = [one for one in device.answers if one["capture"].startswith("live-")]
            if len(answers) >= count:
                break
            if time.monotonic() - began > times[-1] + 120 or device.process.poll() is not None:
                raise BridgeError(f"{len(answers)} of {count} answers: see {device.log}")
        took_s = time.monotonic() - began
        old = sum(one["capture"].startswith("old-") for one in device.answers)
        if origin == "outage" and not _rows(at.folder / name / "spool" / FILE):
            raise BridgeError("the backlog ended before the live frames: make it longer")
        device.process.kill()
    return answers, old / took_s


def _settings(at: Stage, name: str) -> dict[str, Any]:
    return at.settings(name, spool=str(at.folder / name / "spool"), spool_bytes=1 << 30)


def _copied(at: Stage, origin: str, name: str) -> None:
    shutil.copytree(at.folder / origin, at.folder / name, ignore=shutil.ignore_patterns("*.sock"))
    (at.folder / name / "answers.jsonl").unlink(missing_ok=True)


def _rows(spool: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM frames").fetchone()[0])
    except sqlite3.Error:
        return 0
